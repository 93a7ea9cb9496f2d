"""Predictions of tiny Hugging Face models: what they equal, and which weights are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from battle_files import write_battles
from configurations import classifier_member, configuration
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from preference_client.codec import Ensemble
from preference_client.rows import Prediction
from preference_client.writers import batch_of, output_format, schema_of
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import ArtefactError, CheckpointError, ConfigError, UserError
from preference_core.quiet_libraries import quiet_transformers
from preference_training.app import app
from preference_training.battles.rows import read_battles
from preference_training.evaluation.predict import predict
from preference_training.evaluation.predictions import read_predictions
from preference_training.fit.encoding import tokenizer_of
from preference_training.fit.model import classifier
from preference_training.fit.recipe import recipe_of
from preference_training.synthetic.tiny import TinyBase, write_base

pytestmark = pytest.mark.slow

MEMBERS = [
    classifier_member(
        name,
        base=f"build/small/bases/{name}",
        adapter=f"build/small/adapters/{name}",
        max_tokens=24,
        training={"rank": 4},
    )
    for name in ("gemma", "llama")
]
DATA = {"validation": "validation.csv"}
CONFIG = configuration(
    *MEMBERS,
    combine={"weights": {"gemma": 0.25, "llama": 0.75}, "fixed": {"identical_responses": {"winner_tie": 1.0}}},
    data=DATA,
)
TEXTS = ["Why is the sky blue?", "Because light scatters.", "Ask someone else, please.", "It is not.", "", "Yes " * 30]


def battle_rows():
    rows = [[f"b{n}", TEXTS[n % 6], TEXTS[(n + 1) % 6], TEXTS[(n + 2 + n // 6) % 6]] for n in range(12)]
    return [*rows, ["same", "why?", "because", "because"]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two tiny bases, and for each an adapter with a random head and LoRA that changes something."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = folder / "small.toml"
    config.write_text(CONFIG)
    for member, architecture in zip(load_config(config).members, ("gemma2", "llama"), strict=True):
        base = TinyBase(architecture, 32, 64, layers=2, heads=2, key_value_heads=1, head_dim=16, vocabulary_size=700)
        write_base(folder / member.base, base, TEXTS * 3)
        torch.manual_seed(1)
        with quiet_transformers():
            model = classifier(folder / member.base, member, recipe_of(member), 3)
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "score" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(str(folder / str(member.adapter)), save_embedding_layers=False)
    write_battles(folder / "validation.csv", battle_rows())
    return folder


@pytest.fixture
def small(checkpoints, tmp_path, monkeypatch):
    """A working directory of its own with those checkpoints, and the configuration."""
    shutil.copytree(checkpoints, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return load_config("small.toml")


def predicted(config, path="validation.csv", batch_size=4):
    return predict(config, read_battles(Path(path)), config.members, batch_size, lambda *progress: None)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@torch.inference_mode()
def test_predictions_are_those_of_transformers_and_peft_asked_one_by_one(small):
    predictions = predicted(small)
    for member in small.members:
        tokenizer = tokenizer_of(member, Path(member.base))
        with quiet_transformers():
            base = AutoModelForSequenceClassification.from_pretrained(
                member.base, num_labels=3, attn_implementation="eager", dtype=torch.float32
            )
            model = PeftModel.from_pretrained(base, member.adapter).eval()
        base.config.pad_token_id = None  # without one, Transformers pools the very last token
        for row, battle in enumerate(read_battles(Path("validation.csv")).values()):
            encoded = tokenizer.encode(battle)
            logits = model(torch.from_numpy(encoded.ids).long()[None]).logits[0].double().numpy()
            assert predictions.members[member.name][row] == pytest.approx(softmax(logits), abs=1e-5)
            assert predictions.dropped[member.name][row] == sum(encoded.dropped)
        assert predictions.dropped[member.name].max() > 0
        assert np.ptp(predictions.members[member.name][:, 0]) > 0.05


def test_the_size_of_a_batch_changes_nothing(small):
    one, many = predicted(small, batch_size=1), predicted(small, batch_size=13)
    assert np.abs(one.ensemble - many.ensemble).max() < 1e-5
    assert one.ids == many.ids


def test_the_ensemble_is_combined_as_configured(small):
    predictions = predicted(small)
    mean = 0.25 * predictions.members["gemma"] + 0.75 * predictions.members["llama"]
    assert predictions.ensemble[:-1] == pytest.approx(mean[:-1])
    assert predictions.ensemble[-1].tolist() == [0, 0, 1]  # the two responses are the same


def test_the_file_is_the_one_that_the_client_writes(small):
    result = run("predict", "small.toml")
    assert "13 battles" in result.stderr
    path = Path("build/small/validation_predictions.csv")
    names = [member.name for member in small.members]
    made = predicted(small, batch_size=16)
    predictions = []
    for row, identity in enumerate(made.ids):
        by_member = np.stack([made.members[name][row] for name in names]).astype(np.float32)
        dropped = np.array([[made.dropped[name][row], 0, 0] for name in names], dtype=np.int32)
        ensemble = made.ensemble[row].astype(np.float32)
        counts = np.zeros(2, dtype=np.int32)
        predictions.append(
            Prediction(identity, Ensemble("m", small.labels, tuple(names)), ensemble, by_member, counts, dropped)
        )
    schema, csv_format = schema_of(small.labels, names), output_format(path)
    assert path.read_bytes() == csv_format.head(schema) + csv_format.body(batch_of(predictions, schema))
    assert read_predictions(path, small).ids == tuple(row[0] for row in battle_rows())


def test_swapped_predictions_are_those_of_the_exchanged_file(small):
    write_battles("exchanged.csv", [[identity, prompt, b, a] for identity, prompt, a, b in battle_rows()])
    run("predict", "small.toml", "--battles", "exchanged.csv", "-o", "exchanged_predictions.csv")
    run("predict", "small.toml", "--swapped", "-o", "swapped_predictions.csv")
    assert Path("exchanged_predictions.csv").read_text() == Path("swapped_predictions.csv").read_text()


def test_one_member_alone_makes_a_file_of_its_own(small):
    run("predict", "small.toml", "--member", "llama", "-o", "llama.csv")
    alone = read_predictions(Path("llama.csv"), small)
    assert list(alone.members) == ["llama"]
    assert alone.ensemble[:-1] == pytest.approx(alone.members["llama"][:-1], abs=1e-6)
    assert alone.members["llama"] == pytest.approx(predicted(small).members["llama"], abs=1e-6)


@pytest.mark.parametrize("option", [["--swapped"], ["--member", "gemma"], ["--battles", "validation.csv"]])
def test_what_weights_are_fitted_on_is_not_overwritten_with_anything_else(small, option):
    with pytest.raises(UserError, match=r"validation_predictions\.csv"):
        run("predict", "small.toml", *option)


def test_an_adapter_without_its_head_is_refused_by_name(small):
    path = Path("build/small/adapters/gemma/adapter_model.safetensors")
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if "score" not in name}, path)
    with pytest.raises(ArtefactError, match="adapter of `gemma` holds no trained head"):
        predicted(small)


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(small):
    base = small.members[0].base
    with quiet_transformers():
        smaller = AutoModelForCausalLM.from_pretrained(base)
    smaller.resize_token_embeddings(300)
    smaller.save_pretrained(base)
    with pytest.raises(ConfigError, match=r"`gemma`: the tokenizer makes ids up to \d+ .* embeddings for 300 tokens"):
        predicted(small)


def test_a_head_for_other_labels_is_refused(small):
    Path("small.toml").write_text(configuration(*MEMBERS, labels=["model_a", "model_b"], data=DATA))
    with pytest.raises(ArtefactError, match="has 3 labels, expected 2"):
        predicted(load_config("small.toml"))


def test_a_base_without_adapter_needs_a_head_of_its_own(small):
    Path("small.toml").write_text(CONFIG.replace('adapter = "build/small/adapters/gemma"\n', ""))
    config = load_config("small.toml")
    with pytest.raises(ArtefactError, match="base of `gemma` holds no trained head"):
        predicted(config)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(config.members[0].base, num_labels=3)
        model.save_pretrained(config.members[0].base)
    assert predicted(config).members["gemma"].shape == (13, len(LABELS_THREE_WAY))


def test_an_adapter_that_was_not_trained_yet_is_one_error_with_a_hint(small):
    shutil.rmtree("build/small/adapters/llama")
    with pytest.raises(CheckpointError, match=r"`adapter` of `llama` is .*, which is neither a folder nor") as caught:
        predicted(small)
    assert "preference-train fit" in caught.value.hint
    Path("build/small/adapters/llama").mkdir()
    with pytest.raises(ArtefactError, match=r"no adapter_model\.safetensors"):
        predicted(small)


def test_a_mean_of_several_adapters_is_left_to_the_export(small):
    one = 'adapter = "build/small/adapters/gemma"'
    Path("small.toml").write_text(CONFIG.replace(one, one.replace("= ", "= [") + ', "build/small/adapters/llama"]'))
    with pytest.raises(UserError, match="`gemma` is the mean of 2 adapters") as caught:
        predicted(load_config("small.toml"))
    assert "preference-score" in caught.value.hint


def test_a_recipe_that_needs_a_gpu_says_so(small):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    Path("small.toml").write_text(CONFIG.replace("rank = 4", 'rank = 4\nquantisation = "nf4"', 1))
    from preference_core.errors import SystemFailure

    with pytest.raises(SystemFailure, match="needs bitsandbytes and an NVIDIA GPU"):
        predicted(load_config("small.toml"))
