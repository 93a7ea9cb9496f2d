"""How much predictions depend on which response comes first.

Needs predictions of the same battles with their responses exchanged, or those of the symmetric ensemble, from which the
former follow. It knows nothing of models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preference_core.battles.battle import swapped_label_order
from preference_core.ensemble.settings import Config
from preference_core.errors import UserError
from preference_training.evaluation.breakdown import lead_of
from preference_training.evaluation.predictions import ENSEMBLE, Predictions, read_predictions
from preference_training.statistics.intervals import Array, Estimate, Resamples, share_of

#: How far outside of 0 to 1 a probability may be that was computed from rounded ones.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class SwapConsistency:
    """What exchanging the responses does to one source of predictions.

    `same_decision` is the share of battles whose most probable outcome stays, `mean_difference` the mean absolute
    difference of a probability. `position_bias` is by how much the response shown first leads, all else being equal:
    half the difference between the leads of the same response in both places.
    """

    name: str
    same_decision: Estimate
    mean_difference: Estimate
    position_bias: Estimate


@dataclass(frozen=True)
class OtherOrder:
    """Predictions of the same battles with their responses exchanged, by source, their labels back in the original
    order; and the `symmetric` ensemble's own, where they are known.
    """

    exchanged: Mapping[str, Array]
    symmetric: Array | None = None


def other_order(config: Config, read: Predictions, swapped: Path | None, symmetric: Path | None) -> OtherOrder:
    """What one of the two files says of the other order; nothing without a file."""
    if swapped is not None and symmetric is not None:
        raise UserError("Both `--swapped` and `--symmetric` were given", hint="Pass one of them.")
    if symmetric is not None:
        other = read_predictions(symmetric, config).in_order_of(read.ids)
        return OtherOrder(_exchanged_of_symmetric(config, read, symmetric, other), other.ensemble)
    if swapped is None:
        return OtherOrder({})
    exchanged = _exchanged(config, read, swapped)
    return OtherOrder(exchanged, (read.ensemble + exchanged[ENSEMBLE]) / 2 if _is_mean_of_orders(config) else None)


def swap_consistencies(
    config: Config, sources: Mapping[str, Array], exchanged: Mapping[str, Array], resamples: Resamples
) -> tuple[SwapConsistency, ...]:
    """One result for each of `sources` whose predictions of the other order are known."""
    results = []
    for name, original in sources.items():
        if name in exchanged:
            back = exchanged[name]
            difference, bias = resamples.means(
                [
                    np.abs(original - back).mean(axis=1),
                    (lead_of(original, config.labels) - lead_of(back, config.labels)) / 2,
                ]
            )
            results.append(
                SwapConsistency(name, share_of(original.argmax(axis=1) == back.argmax(axis=1)), difference, bias)
            )
    return tuple(results)


def _exchanged(config: Config, read: Predictions, path: Path) -> dict[str, Array]:
    """Predictions of the exchanged battles, their labels back in the original order."""
    other = read_predictions(path, config).in_order_of(read.ids)
    order = list(swapped_label_order(config.labels))
    return {name: values[:, order] for name, values in {**other.members, ENSEMBLE: other.ensemble}.items()}


def _is_mean_of_orders(config: Config) -> bool:
    """Whether the symmetric ensemble's predictions are the mean of the ensemble's for both orders."""
    return config.combine.average == "probabilities" and config.combine.post_processing is None


def _exchanged_of_symmetric(config: Config, read: Predictions, path: Path, other: Predictions) -> dict[str, Array]:
    """The other half of an average of which one half is known; of the ensemble only where it is one."""
    pairs = {name: (read.members[name], values) for name, values in other.members.items() if name in read.members}
    if _is_mean_of_orders(config):
        pairs[ENSEMBLE] = read.ensemble, other.ensemble
    found = {}
    for name, (original, average) in pairs.items():
        back = 2 * average - original
        if back.min() < -_ROUNDING or back.max() > 1 + _ROUNDING:
            raise UserError(
                f"`{path}` does not hold averages of both orders: those of `{name}` are too far from one order's",
                hint="Score the same battles with `preference-score --symmetric`, with the same models and weights.",
            )
        found[name] = np.clip(back, 0, 1)
    return found
