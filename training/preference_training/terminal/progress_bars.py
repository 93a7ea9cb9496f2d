"""Bars on stderr for what takes long. A file or a pipe gets none."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from preference_core.progress import StepDone
from preference_training.terminal.messages import notes


@contextmanager
def bars(what: str) -> Iterator[StepDone]:
    """A bar per step of `what`, each of which appears with its first report; all disappear at the end."""
    columns = (TextColumn(what + " {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(escape(name))
            progress.update(tasks[name], completed=done, total=total)

        yield report
