"""Which model wrote each response: the targets of the two identity heads, which exist only in training.

A head that has to tell which model wrote response A, and one for response B, make the shared layers see style. The
vocabulary is that of the training battles; the heads never leave training, so nothing else has to know it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_core.errors import UserError
from preference_core.files.rows import read_each

COLUMNS = ("model_a", "model_b")


@dataclass(frozen=True, eq=False)
class Identities:
    """Names of models in alphabetical order, and INT64 `[n, 2]`: who wrote A and who wrote B, per row of the file."""

    names: tuple[str, ...]
    pairs: npt.NDArray[np.int64]


def read_identities(path: Path) -> Identities:
    """Reads `model_a` and `model_b` of every row; `UserError` naming the line of the first that lacks one."""
    pairs = list(read_each(path, _pair_of))
    names = tuple(sorted({name for pair in pairs for name in pair}))
    number_of = {name: number for number, name in enumerate(names)}
    return Identities(names, np.array([[number_of[name] for name in pair] for pair in pairs], dtype=np.int64))


def _pair_of(row: Mapping[str, Any]) -> list[str]:
    pair = [str(row.get(column) or "").strip() for column in COLUMNS]
    if not all(pair):
        raise UserError(
            f"there is no `{COLUMNS[pair.index('')]}`, which the identity heads are trained on",
            hint="Set `identity_loss_weight = 0` in the recipe to train the preference head alone.",
        )
    return pair
