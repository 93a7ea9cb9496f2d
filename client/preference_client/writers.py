"""Predictions and failures as bytes that a file grows by, and the output that such a file becomes.

An output is CSV or Parquet. A Parquet file can be read only once its end is written; until then its rows are kept as an
Arrow stream, which holds the same values and can be cut off after any batch.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preference_client.rows import Failure, Prediction
from preference_core.errors import UserError, escape_control_characters
from preference_core.files.predictions import dropped_column, probability_columns, texts_of_numbers
from preference_core.files.rows import ID_COLUMN

ERROR_COLUMNS = ("row", "id", "error")
ROW_GROUP_ROWS = 16384


@dataclass(frozen=True)
class OutputFormat:
    """How predictions are kept while a run goes on: the first bytes, for a schema, and those of each batch.

    `complete` makes the output of what was kept, given both paths; None where they are the same.
    """

    head: Callable[[Any], bytes]
    body: Callable[[Any], bytes]
    complete: Callable[[Path, Path], None] | None = None


def check_output(output: Path, source: str) -> None:
    """Raises `UserError` unless predictions for the file `source` can go to `output`."""
    if output.suffix.lower() not in _FORMATS:
        raise UserError(f"The output is `{output}`", hint=f"Its name must end with one of: {', '.join(_FORMATS)}.")
    if not output.parent.is_dir():
        raise UserError(f"There is no folder `{output.parent}`", hint=f"Make it: `mkdir -p {output.parent}`.")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise UserError(f"`{output}` is also the input", hint="Write the predictions to another file.")


def output_format(output: Path) -> OutputFormat:
    """The format that the suffix of `output` tells."""
    return _FORMATS[output.suffix.lower()]


def errors_path(output: Path) -> Path:
    """Where the failed rows of a run go: `predictions.errors.csv` for `predictions.csv`."""
    return output.with_suffix(".errors.csv")


def schema_of(labels: Sequence[str], members: Sequence[str], submission: bool = False) -> Any:
    """Arrow schema of predictions: `id`, one column per label, and, except in a submission, the members' columns."""
    shown = () if submission else members
    floats = [pa.field(column, pa.float32()) for column in probability_columns(labels, shown)]
    counts = [pa.field(dropped_column(member), pa.int32()) for member in shown]
    return pa.schema([pa.field(ID_COLUMN, pa.string()), *floats, *counts])


def batch_of(predictions: Sequence[Prediction], schema: Any) -> Any:
    """An Arrow record batch with as many of the columns as `schema` has."""
    count = len(predictions)
    floats = np.stack([p.probabilities for p in predictions])
    members = np.stack([p.member_probabilities for p in predictions]).reshape(count, -1)
    dropped = np.stack([p.dropped_tokens for p in predictions]).sum(axis=2, dtype=np.int32)
    columns = [pa.array([p.id for p in predictions], pa.string())]
    columns += [pa.array(np.ascontiguousarray(c)) for values in (floats, members, dropped) for c in values.T]
    return pa.record_batch(columns[: len(schema)], schema=schema)


def failure_lines(failures: Iterable[Failure], with_head: bool) -> bytes:
    """Failures as lines of CSV, each on one."""
    rows = ((failure.row, failure.id, escape_control_characters(failure.error.message)) for failure in failures)
    return _csv_lines([ERROR_COLUMNS, *rows] if with_head else rows)


def _csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _csv_body(batch: Any) -> bytes:
    return _csv_lines(zip(*map(texts_of_numbers, batch), strict=True))


def _complete_parquet(stream: Path, output: Path) -> None:
    """Row groups of one size, however large the batches are that came: equal rows give equal files."""
    with (
        pa.OSFile(str(stream)) as file,
        pa.ipc.open_stream(file) as batches,
        pq.ParquetWriter(output, batches.schema) as writer,
    ):
        waiting = batches.schema.empty_table()
        for batch in batches:
            waiting = pa.concat_tables([waiting, pa.table(batch)])
            while len(waiting) >= ROW_GROUP_ROWS:
                writer.write_table(waiting[:ROW_GROUP_ROWS].combine_chunks())
                waiting = waiting[ROW_GROUP_ROWS:]
        writer.write_table(waiting.combine_chunks())


_FORMATS = {
    ".csv": OutputFormat(lambda schema: _csv_lines([schema.names]), _csv_body),
    ".parquet": OutputFormat(
        lambda schema: schema.serialize().to_pybytes(), lambda batch: batch.serialize().to_pybytes(), _complete_parquet
    ),
}
