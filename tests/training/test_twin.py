"""Tiny twins: of every committed configuration, and one that is generated and fitted."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier, LengthBaseline
from preference_training.battles.rows import read_labelled
from preference_training.fit.recipe import recipe_of
from preference_training.synthetic.generate import generation_of
from preference_training.synthetic.twin import LAYERS, twin_of
from preference_training.toml import toml_text

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
PUBLISHED = [path for path in CONFIGS if path.stem not in ("demo", "real")]

BINARY = """
name = "binary"
labels = ["winner_model_a", "winner_model_b"]

[[member]]
name = "gemma"
base = "google/gemma-2-2b"
revision = "c5ebcd40d208330abc697524c919956e692655cf"
adapter = "checkpoints/binary"
template = "gemma"
special_tokens = "template"
max_tokens = 512
truncation = { policy = "middle", prompt_tokens = 150, response_tokens = 350, mark = "\\n(snip)\\n" }
precision = "bf16"
engine = "tensorrt"
gpus = [0]

[member.training]
rank = 32
alpha = 64
dropout = 0.05
target_modules = ["q_proj", "k_proj", "v_proj"]
first_layer = 6
last_layer = 25
learning_rate = 2e-5
batch_size = 1
gradient_accumulation_steps = 8
label_smoothing = 0.1
evaluations_per_epoch = 10
early_stopping_patience = 3
best_metric = "accuracy"
tensorboard = true
precision = "bf16"
quantisation = "nf4"

[combine.post_processing]
threshold = 0.75
multipliers = { winner_model_a = 1.125 }

[serving]
max_batch_size = 8
"""


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_published_system_has_a_twin(path, tmp_path):
    real = load_config(path, include_may_be_missing=True)
    (tmp_path / "twin.toml").write_text(toml_text(twin_of(path)), encoding="utf-8")
    twin = load_config(tmp_path / "twin.toml", include_may_be_missing=True)
    assert twin.name == f"{real.name}-twin"
    assert twin.labels == real.labels
    assert twin.combine == real.combine
    assert twin.serving == real.serving
    assert generation_of(twin).baseline == generation_of(real).baseline
    split = generation_of(real).split
    if split is not None:
        split = replace(split, source=f"build/{twin.name}/source/battles.csv")
    assert generation_of(twin).split == split
    for small, large in zip(twin.members, real.members, strict=True):
        assert type(small) is type(large)
        if isinstance(small, LengthBaseline):
            assert small.base == f"build/{twin.name}/baseline"
            continue
        assert (small.name, small.template, small.truncation.policy) == (
            large.name,
            large.template,
            large.truncation.policy,
        )
        assert (small.engine, small.precision) == ("onnxruntime", "fp32")
        little, much = recipe_of(small), recipe_of(large)
        assert little.target_modules == much.target_modules
        assert little.quantisation == "none"
        assert little.alpha / little.rank == much.alpha / much.rank
        assert (little.layers(LAYERS) is None) == (much.first_layer is None and much.last_layer is None)
        assert little.schedule == much.schedule
        assert little.identity_loss_weight == much.identity_loss_weight
    classifiers = {member.name for member in real.members if isinstance(member, Classifier)}
    assert set(generation_of(twin).tiny) == classifiers


def test_weights_that_come_from_a_file_are_the_twins_own(binary):
    text = binary.read_text(encoding="utf-8")
    binary.write_text(
        text.replace("[combine.post_processing]", '[combine]\ninclude = "w.toml"\n[combine.post_processing]')
    )
    combine = twin_of(binary)["combine"]
    assert combine["include"] == "binary-twin-weights.toml"
    assert combine["post_processing"]["threshold"] == 0.75


@pytest.fixture
def binary(workplace):
    Path("binary.toml").write_text(BINARY, encoding="utf-8")
    return Path("binary.toml")


def test_a_twin_keeps_what_a_recipe_is_about(binary):
    table = twin_of(binary)
    (member,) = table["member"]
    assert member["truncation"] == {
        "policy": "middle",
        "prompt_tokens": 28,
        "response_tokens": 66,
        "mark": "\n(snip)\n",
    }
    assert member["max_tokens"] == 96
    recipe = member["training"]
    assert (recipe["first_layer"], recipe["last_layer"], recipe["rank"], recipe["alpha"]) == (1, 2, 8, 16)
    assert (recipe["label_smoothing"], recipe["best_metric"], recipe["early_stopping_patience"]) == (0.1, "accuracy", 3)
    assert table["combine"]["post_processing"]["threshold"] == 0.75
    assert table["training"]["tiny"]["gemma"]["heads"] == 2 * table["training"]["tiny"]["gemma"]["key_value_heads"]


def test_a_twin_of_a_sampled_split_draws_a_sample_too(binary):
    binary.write_text(BINARY + '[training.split]\nsource = "data/train.parquet"\nsample = 20000\nseed = 7\n')
    table = twin_of(binary)["training"]["split"]
    assert (table["sample"], table["seed"], table["train"]) == (600, 7, 0.7)


@pytest.mark.slow
def test_a_twin_is_generated_and_fitted(binary, train):
    written = train("twin", binary, "-o", "twins/binary.toml")
    assert written.exit_code == 0, written.stderr
    twin = Path("twins/binary.toml")
    text = twin.read_text(encoding="utf-8")
    twin.write_text(text.replace("train = 400", "train = 48").replace("= 120", "= 24"), encoding="utf-8")
    generated = train("generate", twin)
    assert generated.exit_code == 0, generated.stderr
    data = read_labelled(Path("build/binary-twin/data/train.csv"), ("winner_model_a", "winner_model_b"))
    assert sorted(set(data.targets.tolist())) == [0, 1]
    fitted = train("fit", twin)
    assert fitted.exit_code == 0, fitted.stderr
    assert Path("build/binary-twin/adapters/gemma/adapter_model.safetensors").is_file()


def test_a_twin_never_takes_the_place_of_its_original(binary, train):
    result = train("twin", binary, "-o", binary)
    assert result.exit_code == 2
    assert "is the configuration itself" in result.stderr
    assert binary.read_text(encoding="utf-8") == BINARY


def test_an_ensemble_of_tiny_bases_needs_no_twin(workplace, train):
    result = train("twin", "small.toml", "-o", "twin.toml")
    assert result.exit_code == 2
    assert "its bases are tiny already" in result.stderr


def test_an_architecture_that_has_no_tiny_base_is_named(binary, workplace, train):
    (workplace / "mine").mkdir()
    (workplace / "mine" / "config.json").write_text(
        '{"model_type": "bert", "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 4}'
    )
    pinned = next(line for line in BINARY.splitlines(True) if line.startswith("revision"))
    binary.write_text(BINARY.replace("google/gemma-2-2b", "mine").replace(pinned, ""), encoding="utf-8")
    result = train("twin", binary, "-o", "twin.toml")
    assert result.exit_code == 2
    assert "training.tiny.gemma.architecture" in result.stderr
    assert not Path("twin.toml").exists()


def test_what_is_written_as_toml_is_read_back():
    table = {
        "text": 'a "quote", a \\ and\n a \x7f line: ö 🎈',
        "numbers": [1, 2.5, 2e-05, True],
        "empty": [],
        "table": {"a b": {"deep": "x"}, "value": 1},
        "many": [{"x": 1, "inner": {"y": [["z"]]}}, {"x": 2}],
    }
    assert tomllib.loads(toml_text(table)) == table
