"""What goes into scoring and what comes out: rows, predictions, failures. It knows neither files nor servers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_client.codec import Ensemble
from preference_core.battles.battle import Battle, InvalidText, battle_from_row
from preference_core.errors import PreferenceError, UserError
from preference_core.files.rows import ID_COLUMN, text_of_id


@dataclass(frozen=True, slots=True)
class Row:
    """One battle to be scored, or the error that says why it cannot be. `id` is kept exactly as it was given."""

    id: str
    battle: Battle | PreferenceError


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One scored battle.

    Shapes: `probabilities` `[labels]`; `member_probabilities` `[members, labels]`, before weighting and
    post-processing; `token_counts` `[members]`, what each engine was given; `dropped_tokens` `[members, 3]`, what was
    cut from the prompt and the responses. `ensemble` is the one that answered.
    """

    id: str
    ensemble: Ensemble
    probabilities: npt.NDArray[np.float32]
    member_probabilities: npt.NDArray[np.float32]
    token_counts: npt.NDArray[np.int32]
    dropped_tokens: npt.NDArray[np.int32]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of `probabilities`."""
        return self.ensemble.labels

    @property
    def members(self) -> tuple[str, ...]:
        """The members, in the order of `member_probabilities`."""
        return self.ensemble.members

    @property
    def version(self) -> str:
        """Version of the ensemble that answered."""
        return self.ensemble.version

    @property
    def winner(self) -> str:
        """The most probable label; of equals, the first."""
        return self.labels[int(self.probabilities.argmax())]


@dataclass(frozen=True, slots=True)
class Failure:
    """A battle that could not be scored. `row` counts from 1."""

    row: int
    id: str
    error: PreferenceError


Outcome = Prediction | Failure


def row_of(item: Battle | Mapping[str, Any] | Row, number: int, invalid_text: InvalidText = "error") -> Row:
    """The `number`-th of some items as a row. Without an `id` of its own, its number is its id."""
    if isinstance(item, Row):
        return item
    if isinstance(item, Battle):
        return Row(str(number), item)
    identity = str(number)
    try:
        identity = text_of_id(item.get(ID_COLUMN, number))
        return Row(identity, battle_from_row(item, invalid_text))
    except UserError as error:
        return Row(identity, error)
