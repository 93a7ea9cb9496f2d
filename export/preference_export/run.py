"""One invocation of the command: its configuration, the results it prints, and the bars it shows meanwhile.

Results go to stdout, bars to stderr. It does not know what the stages do, so it starts at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from preference_core.ensemble.settings import Config
from preference_core.errors import Interrupted, escape_control_characters
from preference_core.progress import BytesDone, StepDone


@dataclass
class Run:
    """One invocation: its configuration, and the results it will print, with `more` beside them in JSON.

    `done` is what happened to each result that changed.
    """

    config: Config
    as_json: bool
    done: str = "written"
    more: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, stage: str, name: str, *, changed: bool, folder: Path, **more: Any) -> None:
        """Notes a result; without `--json` it is printed at once."""
        self.results.append({"stage": stage, "name": name, "changed": changed, "folder": folder.as_posix(), **more})
        if not self.as_json:
            brief = {key: value for key, value in more.items() if not isinstance(value, dict)}
            facts = "".join(f", {key.replace('_', ' ')} {_shown(value)}" for key, value in brief.items())
            typer.echo(f"{stage:<10} {name:<16} {self.done if changed else 'up to date'}: {folder.as_posix()}{facts}")

    def say(self, stage: str, name: str, lines: Sequence[str]) -> None:
        """Prints lines for people; with `--json` nothing."""
        if not self.as_json:
            for line in lines:
                typer.echo(f"{stage:<10} {name:<16} {escape_control_characters(line)}")

    def interrupted(self) -> Interrupted:
        """What Ctrl-C leaves: the artefacts that are finished, and nothing of the one under way."""
        done = ", ".join(f"{result['stage']} {result['name']}" for result in self.results)
        return Interrupted(
            f"Interrupted; done: {done or 'nothing'}",
            hint="The same command takes what is done as it is, and begins again with what was under way."
            if done
            else "The same command begins again.",
        )

    def finish(self) -> None:
        """Prints the JSON object, if that was asked for."""
        if self.as_json:
            typer.echo(json.dumps({"ensemble": self.config.name, **self.more, "results": self.results}, indent=1))


@contextmanager
def byte_progress(label: str) -> Iterator[tuple[Callable[[int], None], BytesDone]]:
    """A bar on stderr that shows bytes; gives the functions that set its length and move it."""
    with _bar(label, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as (bar, task):
        yield lambda total: bar.update(task, total=total), lambda written: bar.advance(task, written)


@contextmanager
def phase_progress(label: str) -> Iterator[StepDone]:
    """A bar on stderr that shows the phase TensorRT is in."""
    with _bar(label, TextColumn("{task.completed}/{task.total}")) as (bar, task):
        yield lambda phase, done, steps: bar.update(task, description=f"{label}: {phase}", total=steps, completed=done)


@contextmanager
def _bar(label: str, *columns: ProgressColumn) -> Iterator[tuple[Progress, TaskID]]:
    console, columns = Console(stderr=True), (TextColumn("{task.description}"), BarColumn(), *columns)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(label, total=None)


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
