"""What a run of `make demo` or `make twin` leaves behind."""

import csv
from dataclasses import dataclass
from pathlib import Path

from preference_core.ensemble.settings import Config


@dataclass(frozen=True)
class FinishedRun:
    """Its folder and configuration, and what it printed."""

    folder: Path
    config: Config
    output: str

    def rows(self, name):
        """Rows of one of its CSV files, as dictionaries."""
        csv.field_size_limit(2**31 - 1)
        with (self.folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
