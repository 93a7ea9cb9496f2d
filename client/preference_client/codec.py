"""Battles and predictions as the bytes of Triton's tensors. It knows nothing of how they travel."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_core import tensors
from preference_core.ensemble.combination import normalised_weights
from preference_core.errors import BattleError, CombinationError, NonFiniteLogitsError, ScoringError, nearest

#: Probabilities are sent as FP32; each row sums to 1 within this.
SUM_TOLERANCE = 1e-6

_DTYPES = {"FP32": np.dtype("<f4"), "INT32": np.dtype("<i4")}


@dataclass(frozen=True)
class Ensemble:
    """What the server says about itself: the order of labels and members in every tensor, and what it serves.

    `name` is that of the configuration, `content` the fingerprint of the repository's files.
    """

    model: str
    labels: tuple[str, ...]
    members: tuple[str, ...]
    version: str = ""
    content: str = ""
    name: str = ""

    def __str__(self) -> str:
        return tensors.release(f"`{self.model}`{f' of {self.name}' * bool(self.name)}", self.version, self.content)

    @cached_property
    def outputs(self) -> tuple[tensors.Tensor, ...]:
        """The tensors of an answer."""
        return tensors.answer(len(self.members), len(self.labels))


#: One battle's outputs, as `Ensemble.outputs`: `[labels]`, `[members, labels]`, `[members]`, `[members, 3]`.
Answer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32]]


def weights_tensor(weights: Mapping[str, float] | None, members: Sequence[str]) -> bytes | None:
    """The weights tensor, in the order of `members`; None leaves the configured weights in force."""
    if weights is None:
        return None
    for name in weights:
        if name not in members:
            raise CombinationError(f"weights name an unknown member `{name}`", hint=nearest(name, members))
    missing = [name for name in members if name not in weights]
    if missing:
        raise CombinationError(f"weights leave out the member `{missing[0]}`", hint="Give it a weight; 0 is allowed.")
    return normalised_weights([weights[name] for name in members], len(members)).astype("<f4").tobytes()


def bytes_tensor(turns: Sequence[str], field: str) -> bytes:
    """The contents of the text tensor `field`. Raises `BattleError` for turns that are not UTF-8."""
    try:
        encoded = [turn.encode() for turn in turns]
    except UnicodeEncodeError as error:
        raise BattleError(field, f"holds a lone surrogate at character {error.start}") from error
    return tensors.bytes_contents(encoded)


def answer_of(found: Mapping[str, bytes], ensemble: Ensemble) -> Answer:
    """The answer in the tensors of a response. Raises `ScoringError` or `NonFiniteLogitsError` if there is none."""
    probabilities, members, counts, dropped = (_array(found, tensor) for tensor in ensemble.outputs)
    values = probabilities.tolist()
    if not all(map(math.isfinite, values)):
        raise NonFiniteLogitsError(f"The server returned probabilities that are not finite: {values}")
    if min(values) < 0 or abs(sum(values) - 1) > SUM_TOLERANCE:
        raise ScoringError(f"The server returned {values}, expected probabilities that sum to 1")
    return probabilities, members, counts, dropped


def _array(found: Mapping[str, bytes], tensor: tensors.Tensor) -> npt.NDArray[Any]:
    try:
        return np.frombuffer(found[tensor.name], _DTYPES[tensor.dtype]).reshape(tensor.dims)
    except KeyError as error:
        raise ScoringError(f"The server's answer has no tensor `{tensor.name}`") from error
    except ValueError as error:
        raise ScoringError(
            f"The server's `{tensor.name}` has {len(found[tensor.name])} bytes, expected {tensor.dtype} {tensor.dims}"
        ) from error
