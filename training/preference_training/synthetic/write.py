"""Generated battles as a file in the published format."""

import csv
from collections.abc import Iterable
from pathlib import Path

from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.tensors import FIELDS
from preference_training.battles.turns import json_turns
from preference_training.synthetic.battles import GeneratedBattle

COLUMNS = ("id", "model_a", "model_b", *FIELDS, *LABELS_THREE_WAY)


def write_battles(path: Path, battles: Iterable[GeneratedBattle], ties: bool = True) -> None:
    """Writes battles as the published train.csv: turns as JSON lists, all but ASCII escaped, labels one-hot.

    Without `ties`, labels are as in the published binary files: a column `winner` that says `model_a` or `model_b`.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if ties else (*COLUMNS[: -len(LABELS_THREE_WAY)], "winner"))
        for battle in battles:
            turns = [json_turns(getattr(battle, field)) for field in FIELDS]
            one_hot = [int(battle.label == label) for label in range(len(LABELS_THREE_WAY))]
            label = one_hot if ties else [("model_a", "model_b")[battle.label]]
            writer.writerow([battle.id, battle.model_a, battle.model_b, *turns, *label])
