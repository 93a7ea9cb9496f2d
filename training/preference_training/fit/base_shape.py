"""The shape of a member's base, from its `config.json` alone: no weights, and where possible no network.

Torch is not imported here, so that planning starts at once.
"""

from preference_core.ensemble.locations import read_json
from preference_core.ensemble.published import BASES, Shape
from preference_core.ensemble.settings import Classifier
from preference_core.errors import CheckpointError


def shape_of(member: Classifier) -> Shape:
    """What the `config.json` of the base says.

    A folder describes itself; of a hub id the published shape is known here, else `config.json` alone is fetched.
    """
    if member.base_location.is_on_hub() and member.base in BASES:
        return BASES[member.base]
    path = member.base_location.fetched(["config.json"]).folder / "config.json"
    shape = read_json(path)
    if "model_type" not in shape:
        raise CheckpointError(f"`{path}` names no `model_type`")
    return shape
