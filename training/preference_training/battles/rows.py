"""Files of battles: read with their labels, by id.

It knows the columns of the published files, and nothing of models; `formats` knows how rows are written down.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import UNREADABLE, Battle, battle_from_row
from preference_core.ensemble.metrics import target_of_row
from preference_core.errors import UserError
from preference_training.battles.formats import read_rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LabelledBattles:
    """Battles of one file in its order: `ids` as text, and target indices INT64 `[n]` into the labels."""

    ids: tuple[str, ...]
    battles: tuple[Battle, ...]
    targets: npt.NDArray[np.int64]


def read_labelled(path: Path, labels: Sequence[str]) -> LabelledBattles:
    """Reads every row of a labelled file; characters that no tokenizer reads become U+FFFD.

    Raises `UserError` naming the file and row of the first id that is missing or repeated, and of the first battle or
    label that cannot be read.
    """
    rows = _values_by_id(path, lambda row: (battle_from_row(row, invalid_text="replace"), target_of_row(row, labels)))
    if not rows:
        raise UserError(f"`{path}` holds no battles")
    battles, targets = zip(*rows.values(), strict=True)
    return LabelledBattles(tuple(rows), battles, np.array(targets, dtype=np.int64))


def read_battles(path: Path) -> dict[str, Battle]:
    """Every battle of a labelled or unlabelled file by its id, in order; errors as those of `read_labelled`."""
    return _values_by_id(path, lambda row: battle_from_row(row, invalid_text="replace"))


def rows_by_id(path: Path) -> dict[str, Mapping[str, Any]]:
    """Every row of a file by its id, in order. Raises `UserError` at an id that is missing or repeated."""
    return _values_by_id(path, lambda row: row)


def new_id(row: Mapping[str, Any], known: Container[str]) -> str:
    """The id of a row as text, unchanged: text, or a whole number.

    Raises `UserError` when there is none (null or empty text), it is of another kind, or it is `known` already.
    """
    value = row.get("id")
    if value is None or value == "":
        raise UserError("there is no id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(
            f"the id is {value!r}, expected text or a whole number",
            hint="A column of numbers with a gap becomes floats in pandas; save its ids as text.",
        )
    identity = str(value)
    if UNREADABLE.search(identity) is not None:
        raise UserError(f"the id {identity!a} is not readable text")
    if identity in known:
        raise UserError(f"the id `{identity}` is repeated")
    return identity


def _values_by_id(path: Path, value_of: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    values: dict[str, T] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            values[new_id(row, values)] = value_of(row)
        except UserError as error:
            raise UserError(f"`{path}`, row {number}: {error.message}", error.hint) from error
    return values
