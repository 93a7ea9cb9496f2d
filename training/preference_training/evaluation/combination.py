"""The combination of some members of an ensemble."""

from collections.abc import Sequence
from dataclasses import replace

from preference_core.ensemble.combination import Combination
from preference_core.ensemble.settings import Config


def combination_of_members(config: Config, names: Sequence[str]) -> Combination:
    """The rule of `config` for some of its members alone, in the order of `names`, with their own weights.

    Members that the whole ensemble leaves out (weight 0) count the same among themselves.
    """
    whole = config.combination
    places = [whole.members.index(name) for name in names]
    weights = tuple(whole.weights[place] for place in places)
    return replace(
        whole,
        members=tuple(whole.members[place] for place in places),
        weights=weights if any(weights) else (1.0,) * len(weights),
        temperatures=tuple(whole.temperatures[place] for place in places),
    )
