"""The battles that parity is measured on: a bounded number from the configuration's sample file, of all lengths."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preference_core.battles.battle import Battle, battle_from_row
from preference_core.ensemble.metrics import is_labelled, target_of_row
from preference_core.ensemble.settings import Config
from preference_core.errors import ConfigError, UserError, nearest
from preference_core.files.formats import RawRow
from preference_core.files.rows import read_each, read_rows
from preference_core.tensors import FIELDS

SAMPLE_BATTLES = 64


@dataclass(frozen=True)
class Sample:
    """Battles in the order of the file; `targets` are indices of labels, or None when the file has no labels."""

    battles: tuple[Battle, ...]
    targets: tuple[int, ...] | None

    def in_both_orders(self) -> list[Battle]:
        """The battles, and then the same with their responses exchanged."""
        return [*self.battles, *(battle.swapped() for battle in self.battles)]


def read_sample(path: Path, labels: Sequence[str], count: int = SAMPLE_BATTLES) -> Sample:
    """At most `count` battles of a file, evenly spread over its text lengths; always the same ones."""
    try:
        return _read_sample(path, labels, count)
    except UserError as error:
        raise ConfigError(f"`data.sample`: {error.message}", error.hint) from error


def checked_sample(config: Config) -> Sample:
    """The sample of an ensemble, which has labels where a limit of one of its members needs them."""
    path = sample_of(config)
    sample = read_sample(path, config.labels)
    for member in config.members:
        if sample.targets is None and member.parity.max_log_loss_change is not None:
            raise ConfigError(
                f"`parity.max_log_loss_change` of `{member.name}` needs labels, and `{path}` has none",
                hint="Remove the limit, or name labelled battles in `data.sample`.",
            )
    return sample


def sample_of(config: Config) -> Path:
    """The file of sample battles."""
    if config.data.sample is None:
        raise ConfigError("`data.sample` is missing", hint="Name a file of battles; parity is measured on them.")
    path = Path(config.data.sample)
    if not path.is_file():
        raise ConfigError(f"`data.sample` is not a file: `{path}`", hint="Name a file of battles.")
    return path


def _read_sample(path: Path, labels: Sequence[str], count: int) -> Sample:
    lengths = list(read_each(path, lambda row: sum(len(str(row.get(field) or "")) for field in FIELDS)))
    if not lengths:
        raise UserError(f"`{path}` holds no battles")
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    steps = min(count, len(lengths))
    chosen = {by_length[round(step * (len(lengths) - 1) / max(steps - 1, 1))] for step in range(steps)}
    labelled = _is_labelled(path, next(read_rows(path)), labels)
    number = itertools.count()

    def parsed(row: RawRow) -> tuple[Battle, int] | None:
        if next(number) not in chosen:
            return None
        return battle_from_row(row, invalid_text="replace"), target_of_row(row, labels) if labelled else 0

    battles, targets = zip(*filter(None, read_each(path, parsed)), strict=True)
    return Sample(battles, targets if labelled else None)


def _is_labelled(path: Path, row: RawRow, labels: Sequence[str]) -> bool:
    """Whether the file says who won. Some label columns without the others are an error: one is misspelt."""
    if is_labelled(row, labels):
        return True
    missing = [label for label in labels if label not in row]
    if len(missing) < len(labels):
        columns = [str(column) for column in row if column not in labels]
        raise ConfigError(f"`{path}` has no column `{missing[0]}`, but other labels", hint=nearest(missing[0], columns))
    return False
