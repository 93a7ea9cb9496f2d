"""The columns of a file of predictions: their names, their order, and the probabilities in them.

It knows nothing of where predictions come from.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from preference_core.errors import UserError, nearest
from preference_core.files.formats import RawRow

#: Probabilities must sum to 1 within this: files may have been written with few digits.
SUM_TOLERANCE = 1e-3
#: Key in the metadata of a Parquet file: which ensemble answered. CSV has no place for it.
ANSWERED_BY = "answered_by"


def probability_columns(labels: Sequence[str], members: Iterable[str]) -> list[str]:
    """Columns of the combined probabilities, then of each member's."""
    return [*labels, *(column for member in members for column in member_columns(member, labels))]


def member_columns(member: str, labels: Sequence[str]) -> list[str]:
    """Columns of one member's probabilities."""
    return [f"{member}_{label}" for label in labels]


def dropped_column(member: str) -> str:
    """Column of the number of tokens that truncation cut for one member."""
    return f"{member}_dropped_tokens"


def texts_of_numbers(column: Any) -> list[str]:
    """An Arrow array as a file has it: of each FP32, the shortest text that gives the same number again."""
    import pyarrow

    texts: list[str] = column.cast(pyarrow.string()).to_pylist()
    return texts


def probabilities_of(row: RawRow, columns: Sequence[str]) -> list[float]:
    """The probabilities in `columns` of a row; raises `UserError` for what is not that."""
    missing = next((column for column in columns if column not in row), None)
    if missing is not None:
        raise UserError(f"there is no column `{missing}`", hint=nearest(missing, map(str, row)))
    shown = ", ".join(f"{column} {row[column]!r}" for column in columns)
    try:
        values = [float(row[column]) for column in columns]
    except (TypeError, ValueError) as error:
        raise UserError(f"the probabilities are not all numbers: {shown}") from error
    if not all(value >= 0 for value in values) or not abs(sum(values) - 1) <= SUM_TOLERANCE:
        raise UserError(f"the probabilities do not sum to 1: {shown}", hint="Write the softmax, not logits or labels.")
    return values
