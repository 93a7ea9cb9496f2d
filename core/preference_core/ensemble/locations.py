"""Where a checkpoint is: a folder, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(location: str) -> bool:
    """Whether `location` names a hub repository (`organisation/name`): an existing folder always wins."""
    return not Path(location).exists() and _HUB_ID.fullmatch(location) is not None
