"""Writes predictions (CSV or Parquet) and the list of failed rows, all at once: a file appears when it is complete.

Until then it is a hidden sibling, so that whatever ends the run, an older file of the same name stays as it was.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preference_client.rows import Failure, Prediction
from preference_core.artefacts.replacement import replaced_file, unfinished
from preference_core.errors import UserError, escape_control_characters

ERROR_COLUMNS = ("row", "id", "error")


def check_output(output: Path, source: str) -> None:
    """Raises `UserError` unless predictions for the file `source` can go to `output`."""
    if output.suffix.lower() not in _SINKS:
        raise UserError(f"The output is `{output}`", hint=f"Its name must end with one of: {', '.join(_SINKS)}.")
    if not output.parent.is_dir():
        raise UserError(f"There is no folder `{output.parent}`", hint=f"Make it: `mkdir -p {output.parent}`.")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"`{output}` is also the input", hint="Write the predictions to another file.")


def errors_path(output: Path) -> Path:
    """Where the failed rows of a run go: `predictions.errors.csv` for `predictions.csv`."""
    return output.with_suffix(".errors.csv")


def schema_of(labels: Sequence[str], members: Sequence[str], submission: bool = False) -> Any:
    """Arrow schema of predictions: `id`, one column per label, and, but for a submission, the members' columns."""
    fields = [pa.field("id", pa.string()), *(pa.field(label, pa.float32()) for label in labels)]
    if not submission:
        fields += [pa.field(f"{member}_{label}", pa.float32()) for member in members for label in labels]
        fields += [pa.field(f"{member}_dropped_tokens", pa.int32()) for member in members]
    return pa.schema(fields)


def batch_of(predictions: Sequence[Prediction], schema: Any) -> Any:
    """An Arrow record batch with as many of the columns as `schema` has."""
    count = len(predictions)
    floats = np.stack([p.probabilities for p in predictions])
    members = np.stack([p.member_probabilities for p in predictions]).reshape(count, -1)
    dropped = np.stack([p.dropped_tokens for p in predictions]).sum(axis=2, dtype=np.int32)
    columns = [pa.array([p.id for p in predictions], pa.string())]
    columns += [pa.array(np.ascontiguousarray(c)) for values in (floats, members, dropped) for c in values.T]
    return pa.record_batch(columns[: len(schema)], schema=schema)


def discard(output: Path) -> None:
    """Removes what an unfinished run of this process has written for `output`."""
    for path in (output, errors_path(output)):
        unfinished(path).unlink(missing_ok=True)


@contextmanager
def prediction_writer(
    path: Path, labels: Sequence[str], members: Sequence[str], submission: bool = False
) -> Iterator[Callable[[Prediction], None]]:
    """Yields a function that adds one row to `path`, which appears (CSV or Parquet, by suffix) at the end.

    CSV holds each number as the shortest text that gives the same 32-bit float again.
    """
    schema = schema_of(labels, members, submission)
    sink = _SINKS[path.suffix.lower()]
    waiting: list[Prediction] = []
    with replaced_file(path) as part, sink.opened(part, schema) as write_batch:

        def flush() -> None:
            if waiting:
                write_batch(batch_of(waiting, schema))
                waiting.clear()

        def write(prediction: Prediction) -> None:
            waiting.append(prediction)
            if len(waiting) >= sink.batch_rows:
                flush()

        yield write
        flush()


@contextmanager
def failure_writer(path: Path) -> Iterator[Callable[[Failure], None]]:
    """Yields a function that adds one failure to the CSV file `path`. Without a failure, no file remains there."""
    with replaced_file(path) as part, ExitStack() as stack:
        rows: list[Any] = []

        def write(failure: Failure) -> None:
            if not rows:
                rows.append(csv.writer(stack.enter_context(_text_file(part)), lineterminator="\n"))
                rows[0].writerow(ERROR_COLUMNS)
            rows[0].writerow((failure.row, failure.id, escape_control_characters(failure.error.message)))

        yield write


@contextmanager
def _csv_sink(path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    with _text_file(path) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(schema.names)
        yield lambda batch: rows.writerows(zip(*(c.cast(pa.string()).to_pylist() for c in batch), strict=True))


@contextmanager
def _parquet_sink(path: Path, schema: Any) -> Iterator[Callable[[Any], None]]:
    with pq.ParquetWriter(path, schema) as writer:
        yield writer.write_batch


def _text_file(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="")


@dataclass(frozen=True)
class _Sink:
    """How one format is written, and how many rows are kept until they are written together."""

    opened: Callable[[Path, Any], AbstractContextManager[Callable[[Any], None]]]
    batch_rows: int


_SINKS = {".csv": _Sink(_csv_sink, 1024), ".parquet": _Sink(_parquet_sink, 16384)}
