"""Files of battles: reading labelled ones, writing generated ones.

It knows the columns of the published files, and nothing of models; how rows are written down is `formats`' business.
"""

import csv
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from preference_core.battle import UNREADABLE, Battle, battle_from_row
from preference_core.errors import UserError
from preference_core.metrics import target_of_row
from preference_core.settings import LABELS_THREE_WAY
from preference_core.tensors import FIELDS
from preference_training.battles import GeneratedBattle, RawTurns
from preference_training.formats import read_rows

T = TypeVar("T")

COLUMNS = ("id", "model_a", "model_b", *FIELDS, *LABELS_THREE_WAY)


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
        raise UserError(f"the id {identity!a} is no readable text")
    if identity in known:
        raise UserError(f"the id `{identity}` is repeated")
    return identity


def _values_by_id(path: Path, value_of: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    values: dict[str, T] = {}
    for number, row in enumerate(read_rows(path), start=1):
        try:
            values[new_id(row, values)] = value_of(row)
        except UserError as error:
            raise UserError(f"`{path}`, row {number}: {error.message}", error.hint) from None
    return values


def write_battles(path: Path, battles: Iterable[GeneratedBattle], ties: bool = True) -> None:
    """Writes battles as the published train.csv: turns as JSON lists, all but ASCII escaped, labels one-hot.

    Without `ties`, labels are as in the published binary files: a column `winner` that says `model_a` or `model_b`.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if ties else (*COLUMNS[: -len(LABELS_THREE_WAY)], "winner"))
        for battle in battles:
            turns = [json_turns(getattr(battle, field)) for field in FIELDS]
            one_hot = [int(battle.label == label) for label in range(len(LABELS_THREE_WAY))]
            label = one_hot if ties else [("model_a", "model_b")[battle.label]]
            writer.writerow([battle.id, battle.model_a, battle.model_b, *turns, *label])


def json_turns(turns: RawTurns) -> str:
    """Turns as the published files spell them: no spaces between, surrogate pairs escaped, `/` as `\\/`."""
    return json.dumps(turns, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/")
