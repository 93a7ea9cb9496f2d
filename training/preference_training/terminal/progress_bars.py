"""Bars on stderr for what takes long. A file or a pipe gets none."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from preference_training.terminal.messages import notes

COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[values]}"))


class Report(Protocol):
    """A `StepDone` that may be told values to show behind the bar."""

    def __call__(self, name: str, done: int, total: int, values: Mapping[str, float] = ...) -> None: ...


@contextmanager
def bars(what: str) -> Iterator[Report]:
    """A bar per step of `what`, each of which appears with its first report; all disappear at the end."""
    with Progress(TextColumn(what + " {task.description}"), *COLUMNS, console=notes, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(escape(name), values="")
            shown = " ".join(f"{key} {value:.3f}" for key, value in (values or {}).items())
            progress.update(tasks[name], completed=done, total=total, values=shown)

        yield report
