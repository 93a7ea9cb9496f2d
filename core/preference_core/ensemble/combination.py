"""From logits to one prediction: softmax, weighted averaging, temperature, post-processing.

Works on NumPy arrays in float64 and refuses anything that is not finite. It knows nothing of models or servers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import SPECIAL_CASES, swapped_label_order
from preference_core.errors import CombinationError, NonFiniteLogitsError, nearest

Array = npt.NDArray[np.float64]
#: How the error of a member that computed NaN or infinity reads; clients know it by this.
NOT_FINITE = "returned logits that are not finite"


@dataclass(frozen=True)
class PostProcessing:
    """Multiplies each probability above `threshold` (strictly) by its label's factor, then renormalises.

    The published rule (threshold 0.75, factors 1.125 for a and b, 1.325 for a tie) skips the last step, so
    its rows need not sum to 1; here they always do.
    """

    threshold: float  #: 0 to 1: a probability strictly above it is multiplied
    multipliers: Mapping[str, float]  #: factor of each label; 1 unless given

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise CombinationError(f"threshold is {self.threshold}, expected 0 to 1")
        for label, factor in self.multipliers.items():
            if not np.isfinite(factor) or factor <= 0:
                raise CombinationError(f"multiplier of `{label}` is {factor}, expected a positive number")

    def apply(self, probabilities: Array, labels: tuple[str, ...]) -> Array:
        """Post-processed probabilities, shape `[..., labels]`; each row sums to 1."""
        factors = np.array([self.multipliers.get(label, 1.0) for label in labels])
        raised = np.where(probabilities > self.threshold, probabilities * factors, probabilities)
        result: Array = raised / raised.sum(axis=-1, keepdims=True)
        return result


@dataclass(frozen=True)
class Combination:
    """How `members` are combined over `labels`; `weights` and `temperatures` follow the order of `members`.

    `fixed` answers special cases (`preference_core.battles.battle.SPECIAL_CASES`) with probabilities per label.
    """

    labels: tuple[str, ...]
    members: tuple[str, ...]
    weights: tuple[float, ...]
    average: Literal["probabilities", "logits"] = "probabilities"
    temperatures: tuple[float, ...] = ()
    post_processing: PostProcessing | None = None
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise CombinationError(f"labels are {list(self.labels)}, expected at least two different ones")
        try:
            swapped_label_order(self.labels)
        except ValueError as error:
            raise CombinationError(
                str(error),
                hint="Call them winner_model_a, winner_model_b, winner_tie; `head_labels` of a member may differ.",
            ) from error
        normalised_weights(self.weights, len(self.members))
        temperatures = self.temperatures or (1.0,) * len(self.members)
        if len(temperatures) != len(self.members) or not all(np.isfinite(t) and t > 0 for t in temperatures):
            raise CombinationError(f"temperatures are {list(temperatures)}, expected one positive number per member")
        object.__setattr__(self, "temperatures", temperatures)
        for label in self.post_processing.multipliers if self.post_processing else ():
            if label not in self.labels:
                raise CombinationError(f"multiplier for unknown label `{label}`", hint=nearest(label, self.labels))

        for case in self.fixed:
            self.fixed_probabilities(case)

    def fixed_probabilities(self, case: str) -> Array | None:
        """The configured answer `[labels]` to a special case; None where the members answer."""
        answer = self.fixed.get(case)
        if answer is None:
            return None
        if case not in SPECIAL_CASES[1:]:
            raise CombinationError(f"`fixed` names an unknown case `{case}`", hint=nearest(case, SPECIAL_CASES[1:]))
        unknown = [label for label in answer if label not in self.labels]
        values = np.array([answer.get(label, 0.0) for label in self.labels])
        if unknown or (values < 0).any() or not abs(values.sum() - 1) < 1e-6:
            raise CombinationError(
                f"`fixed.{case}` is {dict(answer)}, expected probabilities of {', '.join(self.labels)} that sum to 1"
            )
        return values

    def member_probabilities(self, logits: npt.ArrayLike, swapped_logits: npt.ArrayLike | None = None) -> Array:
        """Probabilities `[..., members, labels]` of each member at its temperature.

        `logits` and `swapped_logits` have that shape too; the latter are of the battles with exchanged responses, and
        are averaged in when given. Raises `NonFiniteLogitsError` on NaN and infinity.
        """
        result: Array = softmax(self._by_order(logits, swapped_logits)).mean(axis=0)
        return result

    def probabilities(
        self,
        logits: npt.ArrayLike,
        swapped_logits: npt.ArrayLike | None = None,
        *,
        weights: npt.ArrayLike | None = None,
    ) -> Array:
        """One prediction `[..., labels]` from the same arrays as `member_probabilities`.

        `weights` `[members]` replaces the configured weights for this call; they are normalised to sum to 1.
        """
        scale = normalised_weights(self.weights if weights is None else weights, len(self.members))
        by_order = self._by_order(logits, swapped_logits)
        if self.average == "logits":
            combined = softmax(np.einsum("...ml,m->...l", by_order.mean(axis=0), scale))
        else:
            combined = np.einsum("...ml,m->...l", softmax(by_order).mean(axis=0), scale)
        if self.post_processing is not None:
            combined = self.post_processing.apply(combined, self.labels)
        return combined

    def predictions(self, logits: npt.ArrayLike, cases: Iterable[str]) -> Array:
        """`probabilities` of battles, but the configured answer of those whose special case, in `cases`, has one."""
        combined = self.probabilities(logits)
        for row, case in enumerate(cases):
            fixed = self.fixed_probabilities(case)
            combined[row] = combined[row] if fixed is None else fixed
        return combined

    def _by_order(self, logits: npt.ArrayLike, swapped_logits: npt.ArrayLike | None) -> Array:
        """Tempered logits `[orders, ..., members, labels]`, all in the label order of the original battles."""
        orders = [self._tempered(logits)]
        if swapped_logits is not None:
            orders.append(self._tempered(swapped_logits)[..., swapped_label_order(self.labels)])
        return np.stack(orders)

    def _tempered(self, logits: npt.ArrayLike) -> Array:
        values = np.asarray(logits, dtype=np.float64)
        if values.shape[-2:] != (len(self.members), len(self.labels)):
            raise ValueError(
                f"logits have shape {values.shape}, expected [..., {len(self.members)}, {len(self.labels)}]"
            )
        finite = np.isfinite(values).all(axis=-1)
        if not finite.all():
            broken = self.members[int(np.argwhere(~finite)[0][-1])]
            raise NonFiniteLogitsError(
                f"Member `{broken}` {NOT_FINITE}",
                hint=f"Its engine overflows; check it with `preference-export check`, or export `{broken}` as bf16.",
            )
        result: Array = values / np.asarray(self.temperatures)[:, None]
        return result


@dataclass(frozen=True)
class Combine:
    """How the members' logits become one prediction."""

    #: weight of each member; they need not sum to 1, and all count the same without any
    weights: Mapping[str, float] = field(default_factory=dict)
    average: Literal["probabilities", "logits"] = "probabilities"  #: what is averaged
    #: each member's logits are divided by its own; 1 unless given
    temperatures: Mapping[str, float] = field(default_factory=dict)
    post_processing: PostProcessing | None = None  #: a threshold and multipliers, after averaging
    #: probabilities by label for `identical_responses`, `empty_response_a`, `empty_response_b`, which then need no
    #: model
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def rule(self, labels: tuple[str, ...], members: tuple[str, ...]) -> Combination:
        """The same for `members`, in their order."""
        missing = [name for name in members if self.weights and name not in self.weights]
        if missing:
            raise CombinationError(
                f"weights leave out the member `{missing[0]}`", hint="Give it a weight; 0 is allowed."
            )
        return Combination(
            labels,
            members,
            weights=tuple(self.weights.get(name, 1.0) for name in members),
            average=self.average,
            temperatures=tuple(self.temperatures.get(name, 1.0) for name in members),
            post_processing=self.post_processing,
            fixed=self.fixed,
        )


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def normalised_weights(weights: npt.ArrayLike, members: int) -> Array:
    """`weights` scaled to sum to 1. Raises unless they are finite, not negative, not all zero, and one per member."""
    values = np.asarray(weights, dtype=np.float64)
    shown = values.tolist()
    if values.shape != (members,):
        raise CombinationError(f"weights are {shown}, expected {members} numbers, one per member")
    if not np.isfinite(values).all() or (values < 0).any():
        raise CombinationError(f"weights are {shown}, expected finite numbers that are not negative")
    if values.sum() <= 0:
        raise CombinationError(f"weights are {shown}, expected at least one above zero")
    result: Array = values / values.sum()
    return result
