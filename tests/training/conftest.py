"""A small ensemble in a temporary working directory, and the command `preference-train` run inside this process."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from preference_core.ensemble.loading import load_config
from preference_training.app import main
from preference_training.synthetic.generate import base_stage, battles_stage, generation_of, make_base, make_battles

CONFIG = """
name = "small"

[[member]]
name = "gemma"
base = "build/small/bases/gemma"
adapter = "build/small/adapters/gemma"
template = "gemma"
special_tokens = "template"
max_tokens = 96

[member.training]
rank = 4
alpha = 8
learning_rate = 1e-3
batch_size = 8
swap_probability = 0.5

[[member]]
name = "llama"
base = "build/small/bases/llama"
adapter = "build/small/adapters/llama"
template = "llama"
max_tokens = 96

[member.training]
rank = 4
alpha = 8
learning_rate = 1e-3
batch_size = 8

[data]
train = "build/small/data/train.csv"
validation = "build/small/data/validation.csv"
test = "build/small/data/test.csv"

[training.battles]
train = 32
validation = 16
test = 24
seed = 7

[training.tiny.gemma]
architecture = "gemma2"
hidden_size = 32
intermediate_size = 64
layers = 2
heads = 2
key_value_heads = 1
head_dim = 16
vocabulary_size = 800

[training.tiny.llama]
architecture = "llama"
hidden_size = 32
intermediate_size = 64
layers = 2
heads = 2
key_value_heads = 1
head_dim = 16
vocabulary_size = 800
"""


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working directory that holds `small.toml` and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def config(workplace):
    return load_config("small.toml")


@pytest.fixture
def generated(config):
    """The small ensemble with its battles and bases made."""
    generation = generation_of(config)
    battles_stage(config, generation.battles).run(lambda folder: make_battles(folder, generation.battles))
    for member in config.members:
        base = generation.tiny[member.name]
        base_stage(config, member, base, generation.battles).run(
            lambda folder, member=member, base=base: make_base(folder, member, base, generation.battles)
        )
    return config


@pytest.fixture
def train(monkeypatch, capsys):
    """Runs `preference-train ARGUMENTS` and returns its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["preference-train", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return Result(stopped.value.code or 0, printed.out, printed.err)

    return run
