"""The battles that parity is measured on: a bounded number from the configuration's sample file, of all lengths."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.battles.battle import Battle, battle_from_row
from preference_core.ensemble.metrics import target_of_row
from preference_core.errors import ConfigError, UserError, nearest
from preference_core.tensors import FIELDS

SAMPLE_BATTLES = 64
PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")


@dataclass(frozen=True)
class Sample:
    """Battles in the order of the file; `targets` are indices of labels, or None when the file has no labels."""

    battles: tuple[Battle, ...]
    targets: tuple[int, ...] | None


def read_sample(path: Path, labels: Sequence[str], count: int = SAMPLE_BATTLES) -> Sample:
    """At most `count` battles of a CSV or Parquet file, evenly spread over its text lengths; always the same ones."""
    lengths = [_characters(row) for row in _rows(path)]
    if not lengths:
        raise ConfigError(f"`data.sample` is `{path}`, which holds no battles")
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    steps = min(count, len(lengths))
    chosen = {by_length[round(step * (len(lengths) - 1) / max(steps - 1, 1))] for step in range(steps)}
    rows = {index: row for index, row in enumerate(_rows(path)) if index in chosen}
    labelled = _is_labelled(path, next(iter(rows.values())), labels)
    battles, targets = [], []
    for index, row in rows.items():
        try:
            battles.append(battle_from_row(row, invalid_text="replace"))
            targets.extend([target_of_row(row, labels)] if labelled else [])
        except UserError as error:
            raise ConfigError(f"`{path}`, battle {index + 1}: {error.message}", error.hint) from error
    return Sample(tuple(battles), tuple(targets) if labelled else None)


def _is_labelled(path: Path, row: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Whether the file says who won. Some label columns without the others are an error: one is misspelt."""
    if "winner" in row:
        return True
    missing = [label for label in labels if label not in row]
    if missing and len(missing) < len(labels):
        columns = [str(column) for column in row if column not in labels]
        raise ConfigError(f"`{path}` has no column `{missing[0]}`, but other labels", hint=nearest(missing[0], columns))
    return not missing


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"`data.sample` is not a file: `{path}`", hint="Name a CSV or Parquet file of battles.")
    try:
        if path.suffix == ".parquet":
            for batch in ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
            return
        csv.field_size_limit(sys.maxsize)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for row in rows:
                if None in row or None in row.values():
                    raise ConfigError(
                        f"`data.sample` is `{path}`, whose line {rows.line_num} does not have the columns of its header"
                    )
                yield row
    except UnicodeDecodeError as error:
        hint = "Unpack it, or save it as UTF-8." if path.suffix in PACKED else "Save it as UTF-8."
        raise ConfigError(f"`data.sample` is `{path}`, which is not UTF-8 text: {error}", hint) from error
    except (csv.Error, pyarrow.ArrowException, OSError) as error:
        hint = pull_hint(path) or "Name a CSV or Parquet file of battles."
        raise ConfigError(f"`data.sample` is `{path}`, which cannot be read: {error}", hint) from error


def _characters(row: Mapping[str, Any]) -> int:
    return sum(len(str(row.get(field) or "")) for field in FIELDS)
