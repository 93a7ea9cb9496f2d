"""Length buckets: how much longer the first response is, alone, predicts who wins.

The difference in length (A - B) falls into one of some hundred quantile buckets; the prediction is the shares of the
labels in that bucket. Fitting them is done elsewhere. As a member of an ensemble, the number of the bucket
is the one token id of a battle.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import Battle
from preference_core.battles.cells import Turns
from preference_core.battles.tokenisation import TokenisedBattle
from preference_core.errors import ArtefactError, ConfigError
from preference_core.structure import plain, structure

Unit = Literal["characters", "words"]

LENGTHS_FILE = "length_buckets.json"


@dataclass(frozen=True)
class LengthBuckets:
    """Fitted buckets: ascending inner `edges`, and `probabilities` `[len(edges) + 1][labels]`.

    A difference on an edge belongs to the bucket above it.
    """

    labels: tuple[str, ...]
    unit: Unit
    edges: tuple[float, ...]
    probabilities: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        labels, buckets = len(self.labels), len(self.edges) + 1
        if len(self.probabilities) != buckets or any(len(row) != labels for row in self.probabilities):
            raise ConfigError(f"`probabilities` must have {buckets} rows of {labels} numbers")
        if not all(0 < value <= 1 for row in self.probabilities for value in row):
            raise ConfigError("`probabilities` are above 0 and at most 1")
        if not all(low < high for low, high in pairwise(self.edges)):
            raise ConfigError("`edges` do not ascend")

    def bucket_of(self, battle: Battle) -> int:
        """The number of the bucket that a battle falls into."""
        return bisect_right(self.edges, difference_of(battle, self.unit))

    def predict(self, differences: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probabilities `[n, labels]` for differences in length `[n]`."""
        rows: npt.NDArray[np.float64] = np.array(self.probabilities)[
            np.searchsorted(self.edges, differences, side="right")
        ]
        return rows

    def log_probabilities(self) -> npt.NDArray[np.float32]:
        """Logits `[buckets, labels]` FP32 whose softmax is `probabilities`."""
        logits: npt.NDArray[np.float32] = np.log(np.array(self.probabilities)).astype(np.float32)
        return logits


class LengthEncoder:
    """Gives each battle its bucket as the one id, where a classifier's tokenizer gives ids of text; drops nothing."""

    def __init__(self, buckets: LengthBuckets) -> None:
        self.buckets = buckets

    def encode(self, battle: Battle) -> TokenisedBattle:
        """The id of one battle, INT32 `[1]`."""
        return TokenisedBattle(np.array([self.buckets.bucket_of(battle)], dtype=np.int32), (0, 0, 0))

    def encode_batch(self, battles: Sequence[Battle]) -> list[TokenisedBattle]:
        """The ids of several battles."""
        return [self.encode(battle) for battle in battles]


def length_of(turns: Turns, unit: Unit) -> int:
    """Length of a response: characters of its turns joined by one space, or words."""
    text = " ".join(turns)
    return len(text) if unit == "characters" else len(text.split())


def difference_of(battle: Battle, unit: Unit) -> int:
    """How much longer the first response of a battle is."""
    return length_of(battle.response_a, unit) - length_of(battle.response_b, unit)


def write_buckets(folder: Path, buckets: LengthBuckets) -> None:
    """Writes `length_buckets.json` into `folder`."""
    (folder / LENGTHS_FILE).write_text(json.dumps(plain(buckets), indent=1) + "\n", encoding="utf-8")


def read_buckets(folder: Path, labels: Sequence[str] | None = None) -> LengthBuckets:
    """The buckets in `folder`; `ArtefactError` when there are none, or they were fitted for other `labels`."""
    path = folder / LENGTHS_FILE
    try:
        buckets = structure(LengthBuckets, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ArtefactError(
            f"`{folder}` has no {LENGTHS_FILE}", hint="Fit it with `preference-train baseline CONFIG`."
        ) from error
    except (OSError, ValueError, ConfigError) as error:
        raise ArtefactError(f"`{path}` cannot be read: {error}") from error
    if labels is not None and buckets.labels != tuple(labels):
        raise ArtefactError(
            f"`{folder}` was fitted for the labels {', '.join(buckets.labels)}, not {', '.join(labels)}",
            hint="Fit it again with `preference-train baseline CONFIG`.",
        )
    return buckets
