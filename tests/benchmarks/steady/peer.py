"""A peer that answers what it was told to, and so needs no library."""

import json
from pathlib import Path

PACKAGES = ("pip",)


def load(checkpoint, told):
    rows = json.loads(Path(told).read_text())[Path(checkpoint).name]
    return lambda sequences: rows[: len(sequences)]
