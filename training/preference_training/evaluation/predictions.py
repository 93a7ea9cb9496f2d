"""Files of predictions, as `preference-score` writes them: read back by id, checked, and written the same way.

It knows nothing of where predictions come from or what they are compared with.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from preference_core.artefacts.replacement import replaced_file
from preference_core.ensemble.metrics import joined_by_id
from preference_core.ensemble.settings import Config
from preference_core.errors import UserError
from preference_core.files.formats import RawRow
from preference_core.files.predictions import (
    ANSWERED_BY,
    dropped_column,
    member_columns,
    probabilities_of,
    probability_columns,
    texts_of_numbers,
)
from preference_core.files.rows import ID_COLUMN, values_by_id
from preference_training.statistics.intervals import Array

#: Name of the combined predictions among those of the members.
ENSEMBLE = "ensemble"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of `n` battles.

    `ensemble` `[n, labels]`, and `members`, the same by member, before weighting and post-processing. `dropped` has
    the tokens `[n]` that truncation cut for a member, where the file says so.
    """

    ids: tuple[str, ...]
    ensemble: Array
    members: Mapping[str, Array]
    dropped: Mapping[str, npt.NDArray[np.int64]]

    def in_order_of(self, ids: Sequence[str]) -> "Predictions":
        """The same predictions in the order of `ids`. Raises `UserError` unless both are the same set."""
        rows = {identity: row for row, identity in enumerate(self.ids)}
        order = [row for _, row, _ in joined_by_id(rows, dict.fromkeys(ids))]
        return Predictions(
            tuple(ids),
            self.ensemble[order],
            {name: values[order] for name, values in self.members.items()},
            {name: values[order] for name, values in self.dropped.items()},
        )


def read_predictions(path: Path, config: Config) -> Predictions:
    """Reads a file with the columns that `preference-score` and `preference-train predict` write.

    Holds those members of `config` that the file has columns of. Raises `UserError` at an id that is missing or
    repeated, a missing column, and a row that holds no probabilities.
    """
    rows = values_by_id(path, lambda row: row)
    if not rows:
        raise UserError(f"`{path}` holds no predictions")
    table = list(rows.values())
    members, dropped = {}, {}
    for member in config.members:
        columns = member_columns(member.name, config.labels)
        if any(column in table[0] for column in columns):
            members[member.name] = _probabilities(path, table, columns)
            column = dropped_column(member.name)
            if column in table[0]:
                dropped[member.name] = _counts(path, table, column)
    return Predictions(tuple(rows), _probabilities(path, table, config.labels), members, dropped)


def answered_by(path: Path) -> str:
    """Which ensemble made a file of predictions; "" if the file does not say, as no CSV does."""
    if path.suffix.lower() != ".parquet":
        return ""
    metadata: Mapping[bytes, bytes] = parquet.read_schema(path).metadata or {}
    return metadata.get(ANSWERED_BY.encode(), b"").decode()


def read_member_predictions(paths: Sequence[Path], config: Config) -> dict[Path, Predictions]:
    """The predictions in files that may each hold some members of `config`, and all of them together.

    Raises `UserError` when a member is in none or in two of the files.
    """
    files: dict[Path, Predictions] = {}
    found: dict[str, Path] = {}
    for path in paths:
        files[path] = read_predictions(path, config)
        for name in files[path].members:
            if name in found:
                raise UserError(f"Both `{found[name]}` and `{path}` hold predictions of `{name}`")
            found[name] = path
    missing = [member.name for member in config.members if member.name not in found]
    if missing:
        raise UserError(
            f"There are no predictions of `{missing[0]}`, a member of `{config.name}`",
            hint=f"Name a file with the columns {', '.join(member_columns(missing[0], config.labels))}.",
        )
    return files


def write_predictions(path: Path, predictions: Predictions, labels: Sequence[str]) -> None:
    """Writes the CSV file that `preference-score` would."""
    header = [ID_COLUMN, *probability_columns(labels, predictions.members), *map(dropped_column, predictions.dropped)]
    floats = [predictions.ensemble, *predictions.members.values()]
    columns = [column for values in floats for column in np.asarray(values, dtype=np.float32).T]
    columns += [values.astype(np.int32) for values in predictions.dropped.values()]
    with replaced_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        texts = (texts_of_numbers(pa.array(np.ascontiguousarray(column))) for column in columns)
        writer.writerows(zip(predictions.ids, *texts, strict=True))


def _counts(path: Path, rows: Sequence[RawRow], column: str) -> npt.NDArray[np.int64]:
    """`[rows]`; every row must hold a whole number, which may be written as `3.0`."""
    counts = []
    for row in rows:
        try:
            count = float(row[column])
        except (TypeError, ValueError):
            count = math.nan
        if not (0 <= count < 2**31 and count.is_integer()):
            raise UserError(
                f"`{path}`: `{column}` of the id `{row['id']}` is {row[column]!r}, expected a whole number",
                hint="Remove the column where the counts are not known.",
            )
        counts.append(int(count))
    return np.array(counts, dtype=np.int64)


def _probabilities(path: Path, rows: Sequence[RawRow], columns: Sequence[str]) -> Array:
    """`[rows, columns]`; every row must hold probabilities that sum to 1."""
    values = []
    for row in rows:
        try:
            values.append(probabilities_of(row, columns))
        except UserError as error:
            raise UserError(f"`{path}`: of the id `{row[ID_COLUMN]}` {error.message}", error.hint) from error
    return np.array(values)
