"""Splits one labelled file into training, validation and test battles, by prompt and by label.

The same prompt never lands in two parts: answers to a prompt that was trained on would be judged too well. It knows
nothing of models; `preference_core.files` reads the file.
"""

import csv
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from preference_core.battles.battle import REPLACEMENT_CHARACTER, UNREADABLE, battle_from_row
from preference_core.battles.lengths import difference_of
from preference_core.ensemble.metrics import target_of_row
from preference_core.ensemble.settings import Config
from preference_core.errors import ConfigError, UserError
from preference_core.files.formats import RawRow
from preference_core.files.rows import values_by_id
from preference_core.structure import at_least, plain
from preference_training.battles.turns import json_turns
from preference_training.stages import Stage, content_of
from preference_training.statistics.intervals import Array, Indices, quantile_edges

#: Raise this when the code splits the same file differently.
SPLIT_VERSION = 1

PARTS = ("train", "validation", "test")
LENGTH_BUCKET = "length_bucket"


@dataclass(frozen=True)
class Split:
    """One labelled file, split into three by prompt, each with the same shares of labels."""

    source: str  #: the file
    train: float = 0.7  #: share of its battles
    validation: float = 0.1  #: share of its battles
    test: float = 0.2  #: share of its battles
    sample: int | None = None  #: use this many battles only, with the same shares of labels; else all
    #: above 1: also stratified by this many quantiles of the difference in length (A - B, in characters), numbered in
    #: a column `length_bucket`
    length_buckets: int = 1
    folds: int | None = None  #: to cross-validate: the test battles are one of so many parts of equal size
    fold: int = 0  #: which of them, from 0
    seed: int = 42  #: of what is drawn

    def __post_init__(self) -> None:
        for part, share in zip(PARTS, self.shares(), strict=True):
            if not 0 < share < 1:
                raise ConfigError(f"`{part}` is {share}, expected more than 0 and less than 1")
        if not math.isclose(sum(self.shares()), 1, abs_tol=1e-6):
            raise ConfigError(f"`train`, `validation` and `test` sum to {sum(self.shares()):g}, expected 1")
        if self.sample is not None:
            at_least("sample", self.sample, len(PARTS))
        at_least("length_buckets", self.length_buckets, 1)
        if self.folds is not None and not math.isclose(self.test * self.folds, 1, abs_tol=1e-6):
            raise ConfigError(f"`test` is {self.test}, expected 1 / {self.folds}, the share of a fold")
        if not 0 <= self.fold < (self.folds or 1):
            raise ConfigError(f"`fold` is {self.fold}, expected 0 to {(self.folds or 1) - 1}: `folds` says how many")
        at_least("seed", self.seed, 0)

    def shares(self) -> tuple[float, float, float]:
        """The shares in the order of `PARTS`."""
        return self.train, self.validation, self.test


def split_stage(config: Config, split: Split) -> Stage:
    """The folder of `train.csv`, `validation.csv` and `test.csv`."""
    made_from = {
        "code": SPLIT_VERSION,
        "split": plain(split),
        "labels": list(config.labels),
        "source": content_of(Path(split.source)),
    }
    return Stage(config.folders.data, "split", made_from, replaces=("battles",))


def make_split(folder: Path, split: Split, labels: Sequence[str]) -> dict[str, Any]:
    """Writes the three files, rows in the order of the source and with its columns.

    Returns the number of battles and the share of each label by part. Raises `UserError` naming the first row that is
    not a labelled battle.
    """
    rows, prompts, targets, leads = _read(Path(split.source), labels)
    strata = targets
    if split.length_buckets > 1:
        buckets = np.searchsorted(quantile_edges(leads, split.length_buckets), leads, side="right")
        strata = targets * split.length_buckets + buckets
        rows = [{**row, LENGTH_BUCKET: bucket} for row, bucket in zip(rows, buckets.tolist(), strict=True)]
    chosen = np.arange(len(rows)) if split.sample is None else sampled(strata, split.sample, split.seed)
    parts = _parts(strata[chosen], [prompts[index] for index in chosen], split)
    battles, label_shares = {}, {}
    for number, part in enumerate(PARTS):
        indices = chosen[parts == number]
        if len(indices) == 0:
            raise UserError(f"`{split.source}` has too few prompts: no battle is left for `{part}`")
        _write(folder / f"{part}.csv", [rows[index] for index in indices])
        counts = np.bincount(targets[indices], minlength=len(labels))
        battles[part] = len(indices)
        label_shares[part] = dict(zip(labels, (counts / len(indices)).round(4).tolist(), strict=True))
    return {"battles": battles, "label_shares": label_shares}


def _parts(strata: Indices, prompts: Sequence[str], split: Split) -> Indices:
    """The index into `PARTS` `[n]` of each battle."""
    if split.folds is None:
        return assigned(strata, prompts, split.shares(), split.seed)
    folds = assigned(strata, prompts, [1 / split.folds] * split.folds, split.seed)
    parts = np.full(len(strata), PARTS.index("test"))
    rest = np.flatnonzero(folds != split.fold)
    shares = [share / (1 - split.test) for share in (split.train, split.validation)]
    parts[rest] = assigned(strata[rest], [prompts[index] for index in rest.tolist()], shares, split.seed)
    return parts


def sampled(strata: Indices, count: int, seed: int) -> Indices:
    """`count` indices in ascending order, drawn without replacement; each stratum keeps its share within one battle."""
    if count > len(strata):
        raise UserError(f"`sample` is {count}, and there are {len(strata)} battles")
    random = np.random.default_rng(seed)
    exact = np.bincount(strata) * count / len(strata)
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: count - quotas.sum()]] += 1
    drawn = [random.permutation(np.flatnonzero(strata == stratum))[:quota] for stratum, quota in enumerate(quotas)]
    return np.sort(np.concatenate(drawn))


def assigned(strata: Indices, groups: Sequence[Hashable], shares: Sequence[float], seed: int) -> Indices:
    """The part `[n]` (index into `shares`) of each battle: battles of one group stay together.

    Groups are taken in random order, the largest first; each goes where its strata are furthest from their share. With
    groups of one battle each count of a stratum is less than 1 above its exact share; larger groups widen that to about
    the size of the largest.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([numbers[group] for group in groups])
    counts = np.zeros((len(numbers), int(strata.max()) + 1))
    np.add.at(counts, (group_of, strata), 1)
    wanted = np.outer(shares, counts.sum(axis=0)).clip(min=1e-9)
    filled = np.zeros_like(wanted)
    order = list(range(len(numbers)))
    Random(seed).shuffle(order)
    sizes = counts.sum(axis=1)
    part_of_group = np.zeros(len(numbers), dtype=np.int64)
    for group in sorted(order, key=lambda group: -sizes[group]):
        part = int(np.argmax((1 - filled / wanted) @ counts[group]))
        filled[part] += counts[group]
        part_of_group[group] = part
    result: Indices = part_of_group[group_of]
    return result


def _read(path: Path, labels: Sequence[str]) -> tuple[list[RawRow], list[str], Indices, Array]:
    """Rows, normalised prompts, target indices, and how much longer each first response is."""

    def parsed(row: RawRow) -> tuple[RawRow, str, int, float]:
        battle = battle_from_row(row, invalid_text="replace")
        return row, _normalised(battle.prompt), target_of_row(row, labels), difference_of(battle, "characters")

    parsed_rows = values_by_id(path, parsed).values()
    if not parsed_rows:
        raise UserError(f"`{path}` holds no battles")
    rows, prompts, targets, leads = zip(*parsed_rows, strict=True)
    return list(rows), list(prompts), np.array(targets, dtype=np.int64), np.array(leads, dtype=np.float64)


def _normalised(prompt: Sequence[str]) -> str:
    """Prompts that differ in case and white space only are the same."""
    return "\0".join(" ".join(turn.split()).casefold() for turn in prompt)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json_turns(tuple(value))
    if isinstance(value, str):  # a lone surrogate of JSON has no bytes
        return UNREADABLE.sub(REPLACEMENT_CHARACTER, value)
    return int(value) if isinstance(value, bool) else value
