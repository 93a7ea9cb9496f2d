"""The shape of a member's base, from its `config.json` alone: no weights, and where possible no network.

Torch is not imported here, so that planning starts at once.
"""

import json
from pathlib import Path
from typing import Any

from preference_core.ensemble.published import BASES, Shape
from preference_core.ensemble.settings import Classifier
from preference_core.errors import UserError


def shape_of(member: Classifier) -> Shape:
    """What the `config.json` of the base says.

    A folder describes itself; of a hub id the published shape is known here, else `config.json` alone is fetched.
    """
    if member.base_location.is_on_hub() and member.base in BASES:
        return BASES[member.base]
    return _read(member.base_location.fetched(["config.json"]).folder / "config.json", member)


def _read(path: Path, member: Classifier) -> dict[str, Any]:
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"`{path.parent}`, the base of `{member.name}`, is not a checkpoint: it has no config.json"
        ) from error
    except ValueError as error:
        raise UserError(f"`{path}` is not JSON: {error}") from error
    if not isinstance(shape, dict) or "model_type" not in shape:
        raise UserError(f"`{path}` names no `model_type`")
    return shape
