"""Shows how far scoring a file is, on stderr, and sums it up at the end."""

import time
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from preference_client.readers import BattleFile
from preference_client.rows import Failure, Outcome

_REFRESH_S = 0.2


def given_up(console: Console) -> str:
    """What makes a terminal usable again when a bar is never stopped: no half line, and a cursor (ECMA-48)."""
    return "\r\x1b[K\x1b[?25h" if console.is_terminal and not console.is_dumb_terminal else ""


@dataclass
class Counts:
    """What has happened so far, `resumed` rows of it in earlier runs.

    `truncated` counts scored rows that some member did not read whole.
    """

    scored: int = 0
    failed: int = 0
    truncated: int = 0
    resumed: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Counts one outcome."""
        if isinstance(outcome, Failure):
            self.failed += 1
        else:
            self.scored += 1
            self.truncated += bool(outcome.dropped_tokens.any())

    @property
    def rows(self) -> int:
        """Rows scored or failed."""
        return self.scored + self.failed

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_s

    @property
    def rows_per_second(self) -> float:
        """Rows scored or failed by this run, per second since the start."""
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)

    @property
    def speed(self) -> str:
        """The same for people; large models on a CPU score less than one row a second."""
        rate = self.rows_per_second
        return f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.2g} rows/s"


class ScoringProgress:
    """A progress bar: rows, rows per second, failures, time left; nothing if stderr is not a terminal."""

    def __init__(self, console: Console, battles: BattleFile) -> None:
        self._battles = battles
        self._next_refresh_s = 0.0
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = None if battles.fraction() is None else 1.0
        self._task = self._progress.add_task("", total=total, counts="")

    def update(self, counts: Counts) -> None:
        """Shows `counts`, a few times per second at most."""
        now_s = time.monotonic()
        if now_s < self._next_refresh_s:
            return
        self._next_refresh_s = now_s + _REFRESH_S
        text = f"{counts.scored:,} rows, {counts.speed}, {counts.failed:,} failed"
        self._progress.update(self._task, completed=self._battles.fraction() or 0.0, counts=text)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
