"""What is kept of a run that has not ended, so that the same command continues from there, whatever stopped it.

A hidden folder beside the output holds the rows and the failures so far, and a journal: a line that says what the run
is of, then one for each time that everything was written through to the disk. What lies behind the last such line is
dropped. The output appears when it is complete; until then an older file of its name stays as it was.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from preference_client.progress import Counts
from preference_client.rows import Failure, Outcome, Prediction, Row
from preference_client.writers import batch_of, errors_path, failure_lines, output_format
from preference_core.artefacts.replacement import put_in_place, through_to_disk, written_beside
from preference_core.errors import PreferenceError, UserError

SAVE_INTERVAL_S = 2.0
BATCH_ROWS = 1024
FORMAT = 1
START_AGAIN = "`--no-resume` starts again from the first row."


@dataclass(frozen=True)
class Mark:
    """How far a run has come on the disk. `read` is the SHA-256 of all rows so far, `complete` that no more follow."""

    scored: int = 0
    failed: int = 0
    truncated: int = 0
    rows_bytes: int = 0
    errors_bytes: int = 0
    read: str = ""
    complete: bool = False

    @property
    def rows(self) -> int:
        """Rows scored or failed."""
        return self.scored + self.failed


class Journal:
    """One run's way to `output`. Use it in a `with` statement: `skip` what is done, `add` the rest, then `finish`.

    Whatever ends it, what was added is kept. The input may have changed behind the rows that are done, as when a row
    that failed was corrected.
    """

    def __init__(self, output: Path, run: Mapping[str, Any], schema: Any, *, resume: bool = True) -> None:
        """Goes on with what is kept of the same `run`, if `resume`; its values say what it is of, by name.

        Raises `UserError` if another process writes the same output, or what is kept is of another run.
        """
        self.output = output.resolve()
        self.counts = Counts()
        self._folder = self.output.with_name(f".{self.output.name}.unfinished")
        self._format = output_format(self.output)
        self._rows = self._folder / "rows"
        self._errors = self._folder / "errors"
        self._whole = self._folder / "whole" if self._format.complete else self._rows
        self._schema = schema
        self._mark = self._reached = Mark()
        self._sizes = {self._rows: 0, self._errors: 0}
        self._predictions: list[Prediction] = []
        self._failures: list[Failure] = []
        self._read: deque[bytes] = deque()
        self._digest = hashlib.sha256()
        self._busy = False
        self._then: Callable[[], object] | None = None
        with written_beside(self.output):
            self._journal = self._locked()
            try:
                self._open({"the journal's format": FORMAT, **run}, resume)
            except BaseException:
                self._journal.close()
                raise
        self._next_save_s = time.monotonic() + SAVE_INTERVAL_S

    @property
    def kept(self) -> int:
        """Rows whose outcomes are on the disk."""
        return self._mark.rows

    @property
    def is_complete(self) -> bool:
        """Whether every row was scored by an earlier run, which was stopped before the output was in its place."""
        return self._mark.complete

    def skip(self, rows: Iterator[Row]) -> None:
        """Reads the rows that are done, and makes sure that they are the same; if all were done, that none follows."""
        for _, row in zip(range(self.counts.rows), rows, strict=False):
            self._digest.update(_digest_of(row))
        if self.counts.rows and self._digest.hexdigest() != self._mark.read:
            raise UserError(
                f"The first {self.counts.rows:,} rows of the input are not those that were scored", hint=START_AGAIN
            )
        if self.is_complete and next(rows, None) is not None:
            raise UserError(f"The input has more rows than the {self.counts.rows:,} that were scored", hint=START_AGAIN)

    def noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows; what they are is noted, for their outcomes."""
        for row in rows:
            self._read.append(_digest_of(row))
            yield row

    def add(self, outcome: Outcome) -> None:
        """Keeps the outcome of the next row. It is on the disk after at most `SAVE_INTERVAL_S`, or with `save`."""
        self._busy = True
        try:
            self._digest.update(self._read.popleft())
            self.counts.add(outcome)
            if isinstance(outcome, Failure):
                self._failures.append(outcome)
            else:
                self._predictions.append(outcome)
            if len(self._predictions) + len(self._failures) >= BATCH_ROWS:
                self._write()
            if time.monotonic() >= self._next_save_s:
                self._save()
        finally:
            self._busy = False
        if self._then is not None:
            self._then()

    def save_and(self, then: Callable[[], object]) -> None:
        """Saves what was added and calls `then`. Safe in a signal handler: in the middle of `add` it waits."""
        if self._busy:
            self._then = then
            return
        self._busy = True
        try:
            self._save()
        finally:
            then()

    def finish(self) -> None:
        """Every row was added: output and failures take their places, and what was kept goes."""
        with written_beside(self.output):
            if not self._mark.complete:
                self._save()
                if self._format.complete:
                    self._format.complete(self._rows, self._whole)
                self._append(replace(self._mark, complete=True))
            if self._whole.exists():
                put_in_place(self._whole, self.output)
            if self.counts.failed and self._errors.exists():
                put_in_place(self._errors, errors_path(self.output))
            elif not self.counts.failed:
                errors_path(self.output).unlink(missing_ok=True)
            self._remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            added = self.counts.rows > self.counts.resumed
            if isinstance(error, UserError) and not self.counts.rows:
                self._remove()
            elif error is not None and added and not self._mark.complete:
                self._save()
        except PreferenceError:
            if error is None:
                raise
        finally:
            self._journal.close()

    def _locked(self) -> BinaryIO:
        """The journal, which no other process has locked, nor removed while this one waited."""
        while True:
            self._folder.mkdir(exist_ok=True)
            try:
                journal = (self._folder / "journal").open("a+b")
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                journal.close()
                raise UserError(f"Another run is writing `{self.output}`", hint="Choose another output.") from error
            if os.fstat(journal.fileno()).st_nlink:
                return journal
            journal.close()

    def _open(self, run: dict[str, Any], resume: bool) -> None:
        self._journal.seek(0)
        lines = _whole_lines(self._journal) if resume else iter(())
        end, kept = next(lines, (0, None))
        if kept is not None:
            _check_same(self.output, kept, run)
        rows, errors = (_size(path) for path in self._sizes)
        for line_end, values in lines:
            mark = Mark(**values)
            if mark.complete or (mark.rows_bytes <= rows and mark.errors_bytes <= errors):
                end, self._mark = line_end, mark
        if self._mark == Mark():
            self._start(run)
            return
        self._journal.truncate(end)
        self._reached = self._mark
        self.counts = Counts(self._mark.scored, self._mark.failed, self._mark.truncated, resumed=self._mark.rows)
        self._sizes = {self._rows: self._mark.rows_bytes, self._errors: self._mark.errors_bytes}

    def _start(self, run: dict[str, Any]) -> None:
        for path in self._folder.iterdir():
            if path.name != "journal":
                path.unlink()
        self._journal.truncate(0)
        self._append_line(run)
        self._grow(self._rows, self._format.head(self._schema))

    def _write(self) -> None:
        """Hands what waits to the operating system."""
        if self._predictions:
            self._grow(self._rows, self._format.body(batch_of(self._predictions, self._schema)))
            self._predictions.clear()
        if self._failures:
            self._grow(self._errors, failure_lines(self._failures, with_head=not self._sizes[self._errors]))
            self._failures.clear()
        counts, (rows, errors) = self.counts, self._sizes.values()
        read = self._digest.hexdigest()
        self._reached = Mark(counts.scored, counts.failed, counts.truncated, rows, errors, read)

    def _grow(self, path: Path, data: bytes) -> None:
        """Writes `data` behind what is known to be whole: a run that was stopped may have left a part of something."""
        with written_beside(self.output), path.open("ab") as file:
            file.truncate(self._sizes[path])
            file.write(data)
        self._sizes[path] += len(data)

    def _save(self) -> None:
        """Also of a run that can write no more: what it has written so far."""
        try:
            self._write()
        finally:
            with written_beside(self.output):
                for path in filter(Path.exists, self._sizes):
                    through_to_disk(path)
                self._append(self._reached)
        self._next_save_s = time.monotonic() + SAVE_INTERVAL_S

    def _append(self, mark: Mark) -> None:
        if mark != self._mark:
            self._append_line(asdict(mark))
            self._mark = mark

    def _append_line(self, values: Mapping[str, Any]) -> None:
        self._journal.write(json.dumps(values).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _remove(self) -> None:
        shutil.rmtree(self._folder)


def _check_same(output: Path, kept: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {kept.get(name)!r}, is {run.get(name)!r}"
        for name in dict.fromkeys([*kept, *run])
        if kept.get(name) != run.get(name)
    ]
    if changed:
        raise UserError(f"`{output}` was begun in another way: {'; '.join(changed)}", hint=START_AGAIN)


def _whole_lines(journal: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Where each line ends and what it says, up to the first that is torn."""
    for line in iter(journal.readline, b""):
        try:
            values = json.loads(line)
        except ValueError:
            return
        if line.endswith(b"\n"):
            yield journal.tell(), values


def _digest_of(row: Row) -> bytes:
    battle = row.battle
    content = battle.message if isinstance(battle, PreferenceError) else battle
    return hashlib.blake2b(repr((row.id, content)).encode(), digest_size=16).digest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
