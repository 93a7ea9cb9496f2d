"""The generated part of a configuration: battles, and the tiny bases that its members are trained from.

Says what `[training.battles]` and `[training.tiny]` mean, and makes the folders of `build/NAME` from them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preference_core.artefacts.artefact import versions_of
from preference_core.battles.battle import battle_from_turns
from preference_core.battles.template import Template, template_of
from preference_core.ensemble.settings import LABELS_THREE_WAY, Classifier, Config
from preference_core.errors import ConfigError, nearest
from preference_core.structure import at_least, plain, structure
from preference_training.battles.baseline import BaselineSettings
from preference_training.battles.split import Split
from preference_training.members import chosen_members
from preference_training.stages import Stage
from preference_training.synthetic.battles import GeneratedBattle, generate, lowest_log_loss
from preference_training.synthetic.tiny import TinyBase, write_base
from preference_training.synthetic.write import write_battles

#: Raise these when the code that makes the folders changes what it makes.
BATTLES_VERSION = 1
BASES_VERSION = 2


@dataclass(frozen=True)
class BattleCounts:
    """How many battles are generated for each file; to be split, all of them are one file."""

    train: int = 2000  #: battles in train.csv
    validation: int = 500  #: battles in validation.csv
    test: int = 500  #: battles in test.csv
    seed: int = 42  #: of all of them

    def __post_init__(self) -> None:
        for split, count in self.splits().items():
            at_least(split, count, 1)

    def splits(self) -> dict[str, int]:
        """Number of battles by the name of their file."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class Generation:
    """Where battles come from (generated, split from one file, or both), the length baseline, and tiny bases."""

    battles: BattleCounts | None = None  #: battles that `generate` makes
    split: Split | None = None  #: one file that `split` divides; with `battles`, all generated ones are that file
    baseline: BaselineSettings = field(default_factory=BaselineSettings)  #: how the length baseline is fitted
    #: shape of a random base, by member, that `generate` makes
    tiny: Mapping[str, TinyBase] = field(default_factory=dict)


def generation_of(config: Config) -> Generation:
    """The checked table `[training]` of a configuration."""
    generation = structure(Generation, config.training, "training")
    names = [member.name for member in chosen_members(config, None, Classifier)]
    for name in generation.tiny:
        if name not in names:
            raise ConfigError(f"`training.tiny` names an unknown member `{name}`", hint=nearest(name, names))
    if generation.battles is not None and generation.split is not None:
        source, generated = generation.split.source, config.folders.source
        if Path(source) != generated:
            raise ConfigError(
                f"`training.split.source` is `{source}`; the battles of `[training.battles]` will be in `{generated}`",
                hint=f"Set it to `{generated}`, or remove `[training.battles]`.",
            )
    if generation.tiny and generation.battles is None:
        raise ConfigError("`training.tiny` needs `[training.battles]`: the tokenizers are trained on them")
    return generation


def battles_stage(config: Config, counts: BattleCounts, *, to_be_split: bool = False) -> Stage:
    """The folder of `train.csv`, `validation.csv` and `test.csv`; of the one file, where that is `to_be_split`."""
    made_from = {"code": BATTLES_VERSION, "battles": plain(counts), "ties": has_ties(config)}
    folder, kind = (config.folders.source.parent, "source") if to_be_split else (config.folders.data, "battles")
    return Stage(folder, kind, made_from)


def make_source(folder: Path, counts: BattleCounts, ties: bool = True) -> dict[str, Any]:
    """Writes as many battles into one file as the three would hold; returns the lowest log loss to be expected on it.

    They begin with those of the training file, and none of their ids repeats.
    """
    battles = list(generate(sum(counts.splits().values()), counts.seed, "train", ties))
    write_battles(folder / "battles.csv", battles, ties)
    return {"battles": len(battles), "lowest_log_loss": round(lowest_log_loss(battles, ties), 4)}


def has_ties(config: Config) -> bool:
    """Whether the labels of an ensemble are the published three, or a pair of winners."""
    return len(config.labels) == len(LABELS_THREE_WAY)


def make_battles(folder: Path, counts: BattleCounts, ties: bool = True) -> dict[str, Any]:
    """Writes the three files; returns the lowest log loss that a model can be expected to reach on each."""
    floors = {}
    for split, count in counts.splits().items():
        battles = list(generate(count, counts.seed, split, ties))
        write_battles(folder / f"{split}.csv", battles, ties)
        floors[split] = round(lowest_log_loss(battles, ties), 4)
    return {"lowest_log_loss": floors}


def base_stage(config: Config, member: Classifier, base: TinyBase, counts: BattleCounts) -> Stage:
    """The folder of one member's base. It must be in the build folder: nothing else may be overwritten."""
    folder = Path(member.base)
    if config.folders.root not in folder.parents:
        raise ConfigError(
            f"`base` of `{member.name}` is `{member.base}`, and `training.tiny` would write there",
            hint=f"Set it to `{config.folders.base(member.name)}`.",
        )
    made_from = {
        "code": [BATTLES_VERSION, BASES_VERSION],
        "base": plain(base),
        "template": plain(member.template),
        "text": {"count": counts.train, "seed": counts.seed},
    }
    return Stage(folder, "base", made_from, versions_of("tokenizers", "torch", "transformers"))


def make_base(folder: Path, member: Classifier, base: TinyBase, counts: BattleCounts) -> dict[str, Any]:
    """Writes one base, its tokenizer trained on the training battles as the member's template renders them."""
    return write_base(folder, base, rendered(generate(counts.train, counts.seed, "train"), member.template))


def rendered(battles: Iterator[GeneratedBattle], template: str | Template) -> Iterator[str]:
    """The text of each battle in a template, without special tokens."""
    for battle in battles:
        prompt, response_a, response_b = (
            [turn or "" for turn in turns] for turns in (battle.prompt, battle.response_a, battle.response_b)
        )
        yield template_of(template).render(battle_from_turns(prompt, response_a, response_b))
