"""What truncation cost by field: wherever the tokenizer of a member is on this machine."""

from pathlib import Path

import huggingface_hub
import pytest
from battle_files import write_judged, write_predictions
from configurations import classifier_member, configuration

from preference_core.battles.tokenisation import BattleTokenizer
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_training.battles.rows import read_labelled
from preference_training.evaluation.evaluate import evaluate
from preference_training.fit.encoding import tokenizer_of
from preference_training.synthetic.tiny_tokenizer import train_tokenizer

REVISION = "c5ebcd40d208330abc697524c919956e692655cf"
CONFIG = configuration(
    classifier_member(
        "gemma",
        base="google/gemma-2-2b",
        revision=REVISION,
        adapter="checkpoints/gemma",
        special_tokens="template",
        max_tokens=48,
    )
)
BATTLES = [("short", "yes", "no"), ("why " * 30, "because", "no"), ("what?", "so " * 40, "it is " * 20)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A working directory with battles, predictions of a member whose base is a hub id, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("small.toml").write_text(CONFIG)
    write_judged("test.csv", ((number, *battle, 0) for number, battle in enumerate(BATTLES)))
    write_predictions("predictions.csv", {"gemma": [(0.5, 0.3, 0.2)] * len(BATTLES)})
    return tmp_path / "cache" / "models--google--gemma-2-2b" / "snapshots"


def costs(**options):
    return evaluate(load_config("small.toml"), Path("predictions.csv"), Path("test.csv"), **options).truncation


def test_a_base_on_the_hub_is_read_from_the_cache(cache):
    assert costs() == ()
    folder = cache / REVISION
    folder.mkdir(parents=True)
    train_tokenizer("gemma2", [" ".join(battle) for battle in BATTLES], 700).save(folder)
    (cost,) = costs()
    tokenizer = tokenizer_of(load_config("small.toml").members[0], folder)
    dropped = [tokenizer.encode(battle).dropped for battle in read_labelled(Path("test.csv"), LABELS_THREE_WAY).battles]
    assert cost.battles_cut == sum(map(any, dropped)) < len(BATTLES)
    assert list(cost.tokens_lost.values()) == [sum(field) for field in zip(*dropped, strict=True)]
    assert sum(cost.tokens_lost.values()) > 40


@pytest.mark.parametrize("absent", ["revision", "tokenizer.json", "tokenizer_config.json"])
def test_another_revision_or_half_a_tokenizer_tells_nothing(cache, absent):
    folder = cache / ("0" * 40 if absent == "revision" else REVISION)
    folder.mkdir(parents=True)
    train_tokenizer("gemma2", [" ".join(battle) for battle in BATTLES], 700).save(folder)
    (folder / absent).unlink(missing_ok=True)
    assert costs() == ()


def test_battles_that_the_predictions_say_were_whole_are_not_tokenised_again(cache, monkeypatch):
    folder = cache / REVISION
    folder.mkdir(parents=True)
    train_tokenizer("gemma2", [" ".join(battle) for battle in BATTLES], 700).save(folder)
    (expected,) = costs()
    tokenizer = tokenizer_of(load_config("small.toml").members[0], folder)
    battles = read_labelled(Path("test.csv"), LABELS_THREE_WAY).battles
    dropped = [sum(tokenizer.encode(battle).dropped) for battle in battles]
    assert 0 in dropped
    header, *rows = Path("predictions.csv").read_text().splitlines()
    rows = [f"{row},{count}" for row, count in zip(rows, dropped, strict=True)]
    Path("predictions.csv").write_text("\n".join([f"{header},gemma_dropped_tokens", *rows]))
    asked = []
    encode_batch = BattleTokenizer.encode_batch
    monkeypatch.setattr(
        BattleTokenizer, "encode_batch", lambda self, some: asked.extend(some) or encode_batch(self, some)
    )
    assert costs() == (expected,)
    assert asked == [battle for battle, count in zip(battles, dropped, strict=True) if count]


def test_tokenising_again_says_how_far_it_is(cache):
    folder = cache / REVISION
    folder.mkdir(parents=True)
    train_tokenizer("gemma2", [" ".join(battle) for battle in BATTLES], 700).save(folder)
    heard = []
    costs(report=lambda *step: heard.append(step))
    name, done, total = heard[-1]
    assert name == "gemma"
    assert done == total > 0
