"""Files of battles: read with their labels, by id.

It knows the columns of the published files, and nothing of models; `preference_core.files` reads the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import Battle, battle_from_row
from preference_core.ensemble.metrics import target_of_row
from preference_core.errors import UserError
from preference_core.files.rows import values_by_id


@dataclass(frozen=True, eq=False)
class LabelledBattles:
    """Battles of one file in its order: `ids` as text, and target indices INT64 `[n]` into the labels."""

    ids: tuple[str, ...]
    battles: tuple[Battle, ...]
    targets: npt.NDArray[np.int64]


def read_labelled(path: Path, labels: Sequence[str]) -> LabelledBattles:
    """Reads every row of a labelled file; characters that no tokenizer reads become U+FFFD.

    Raises `UserError` naming the file and line of the first id that is missing or repeated, and of the first battle or
    label that cannot be read.
    """
    rows = values_by_id(path, lambda row: (battle_from_row(row, invalid_text="replace"), target_of_row(row, labels)))
    if not rows:
        raise UserError(f"`{path}` holds no battles")
    battles, targets = zip(*rows.values(), strict=True)
    return LabelledBattles(tuple(rows), battles, np.array(targets, dtype=np.int64))


def read_battles(path: Path) -> dict[str, Battle]:
    """Every battle of a labelled or unlabelled file by its id, in order; errors as those of `read_labelled`."""
    return values_by_id(path, lambda row: battle_from_row(row, invalid_text="replace"))
