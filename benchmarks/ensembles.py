"""What is compared: battles, checkpoints that carry their own head, and the ensembles that are exported from them.

Everything lies in one folder, in which `preference-export` runs. It knows nothing of servers or peers.
"""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForSequenceClassification

from preference_core.battles.battle import battle_from_row
from preference_core.battles.encoders import encoder_from_folder
from preference_core.battles.template import template_of
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.files.rows import read_rows
from preference_core.quiet_libraries import quiet_transformers
from preference_core.tensors import FIELDS
from preference_training.synthetic.battles import generate
from preference_training.synthetic.tiny import TinyBase, write_base

#: Battles, and real pretrained weights (a folder with `smollm2`, a Llama of 135 M parameters), where there are any.
REAL_BATTLES, REAL_WEIGHTS = "PREFERENCE_REAL_BATTLES", "PREFERENCE_REAL_WEIGHTS"
#: Two members of about 35 M parameters.
SHAPES = {
    name: TinyBase(
        "gemma2" if name == "gemma" else "llama",
        hidden_size=512,
        intermediate_size=1792,
        layers=9,
        heads=8,
        key_value_heads=4,
        head_dim=64,
        vocabulary_size=8192,
        initializer_std=0.04,
        stretched_rope=False,
        seed=seed,
    )
    for seed, name in enumerate(("gemma", "llama"), 1)
}
#: Characters of a real battle are distributed by this log-normal law: median, and deviation of the logarithm.
MEDIAN_CHARACTERS, DEVIATION = 1900, 0.93
#: Of random ids: the median length, and a number of tokens that every vocabulary has.
MEDIAN_TOKENS, VOCABULARY = 450, 1000
#: The export compares few battles: what it makes is compared again with every peer.
PARITY_BATTLES = 4

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ensemble:
    """One exported ensemble: its members by name, each with the name of its checkpoint."""

    name: str
    members: Mapping[str, str]
    precision: str = "fp32"
    max_tokens: int = 1024
    instances: int = 1  #: of each member, by one thread each
    engine: str = "onnxruntime"
    gpus: tuple[int, ...] = ()

    def text(self) -> str:
        """Its configuration."""
        members = (
            f'[[member]]\nname = "{name}"\nbase = "checkpoints/{checkpoint}"\n'
            f'template = "{"gemma" if checkpoint == "gemma" else "llama"}"\nspecial_tokens = "template"\n'
            f'max_tokens = {self.max_tokens}\nprecision = "{self.precision}"\ninstances = {self.instances}\n'
            f'engine = "{self.engine}"\ngpus = {list(self.gpus)}\n'
            for name, checkpoint in self.members.items()
        )
        return f'name = "{self.name}"\n\n' + "\n".join(members) + '\n[data]\nsample = "parity.csv"\n'

    def model(self, folder: Path, member: str) -> Path:
        """The exported graph of a member."""
        return folder / "build" / self.name / "members" / member / "model.onnx"

    def ids(self, folder: Path, member: str, battles: Sequence[Row]) -> list[npt.NDArray[np.int32]]:
        """What a member reads of each battle: exactly what the server gives it."""
        encoder = encoder_from_folder(self.model(folder, member).parent)
        parsed = [battle_from_row(battle, invalid_text="replace") for battle in battles]
        return [encoded.ids for encoded in encoder.encode_batch(parsed)]


def battles_for(count: int) -> list[Row]:
    """Real battles, evenly spread over the file that the environment names; else generated ones as long as those."""
    if path := os.environ.get(REAL_BATTLES):
        rows = list(read_rows(Path(path)))
        return [rows[number * len(rows) // count] for number in range(min(count, len(rows)))]
    lengths = random.Random(1)
    source = generate(1_000_000, 1, "bench")
    return [_joined(source, lengths.lognormvariate(np.log(MEDIAN_CHARACTERS), DEVIATION)) for _ in range(count)]


def _joined(source: Any, characters: float) -> Row:
    """One battle of so many characters: generated ones end to end."""
    texts = {field: "" for field in FIELDS}
    while sum(map(len, texts.values())) < characters:
        battle = next(source)
        for field in FIELDS:
            texts[field] += "\n".join(turn or "" for turn in getattr(battle, field)) + "\n"
    return {field: json.dumps([text]) for field, text in texts.items()}


def write_checkpoints(folder: Path, shapes: Mapping[str, TinyBase], battles: Sequence[Row]) -> None:
    """Random classifiers `folder/checkpoints/NAME` with tokenizers trained on the battles, and the export's sample."""
    parsed = [battle_from_row(battle, invalid_text="replace") for battle in battles]
    for name, shape in shapes.items():
        texts = [template_of("gemma" if name == "gemma" else "llama").render(battle) for battle in parsed]
        with TemporaryDirectory() as base:
            write_base(Path(base), shape, texts)
            write_classifier(Path(base), folder / "checkpoints" / name)
    with (folder / "parity.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        writer.writeheader()
        shortest = sorted(battles, key=lambda battle: sum(len(str(battle[field])) for field in FIELDS))
        writer.writerows(shortest[:PARITY_BATTLES])


def random_ids(count: int, most: int) -> list[npt.NDArray[np.int32]]:
    """Sequences of random ids, as long as real battles are for members of large vocabularies."""
    random_numbers = np.random.default_rng(1)
    lengths = random_numbers.lognormal(np.log(MEDIAN_TOKENS), DEVIATION, count).clip(16, most).astype(int)
    return [random_numbers.integers(10, VOCABULARY, length, dtype=np.int32) for length in lengths]


def write_classifier(base: Path, folder: Path) -> None:
    """The checkpoint `base` with a random head for three labels, as every peer loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        labels = dict(enumerate(LABELS_THREE_WAY))
        model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, id2label=labels)
        model.save_pretrained(folder)
    for path in base.glob("*token*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # Where transformers 4 reads it.
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def export(folder: Path, ensemble: Ensemble, stage: str = "all") -> Path:
    """Exports what is not up to date; returns the configuration, relative to `folder`."""
    config = Path(f"{ensemble.name}.toml")
    (folder / config).write_text(ensemble.text(), encoding="utf-8")
    subprocess.run([Path(sys.executable).with_name("preference-export"), stage, config], cwd=folder, check=True)
    return config


def operations(checkpoint: Path, lengths: Sequence[int]) -> float:
    """Multiplications and additions that a member needs for sequences of these lengths, none of them twice.

    Linear layers and causal attention; of the last layer only keys, values and what the last token needs.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, layers, heads = (config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    width = config.get("head_dim") or hidden // heads
    keys_values = 2 * hidden * config["num_key_value_heads"] * width
    rest = 2 * hidden * heads * width + 3 * hidden * config["intermediate_size"]
    tokens = np.array(lengths, dtype=np.float64)
    linear = (layers * keys_values + (layers - 1) * rest) * tokens + rest
    attention = heads * width * ((layers - 1) * tokens * (tokens + 1) + 2 * tokens)
    return float(2 * (linear + attention).sum())
