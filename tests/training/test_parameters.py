"""Counted parameters: the published figures, to the last one, from the real shapes on the meta device."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from preference_core.ensemble.published import BASES
from preference_core.ensemble.settings import Classifier
from preference_training.fit.parameters import count_parameters

pytestmark = pytest.mark.slow

GEMMA_2_2B = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
GEMMA_2_9B = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
BINARY_2B = {"rank": 32, "target_modules": ["q_proj", "k_proj", "v_proj"], "first_layer": 6, "last_layer": 25}
GEMMA_9B = {"rank": 16, "target_modules": ["q_proj", "k_proj", "v_proj"], "first_layer": 16, "last_layer": 41}
LLAMA_8B = {"rank": 16, "target_modules": ["o_proj", "v_proj"]}


def member_of(folder, shape, recipe):
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return Classifier(name="it", base=str(folder), template="gemma", max_tokens=512, training=recipe)


def test_the_binary_gemma_2_2b_trains_exactly_what_was_published(tmp_path):
    count = count_parameters(member_of(tmp_path, GEMMA_2_2B, BINARY_2B), labels=2)
    assert (count.trainable, count.total) == (7_049_728, 2_621_396_224)


@pytest.mark.parametrize(
    ("shape", "recipe", "trainable"),
    [(GEMMA_2_9B, GEMMA_9B, 7_891_456), (LLAMA_3_8B, LLAMA_8B, 6_828_032)],
    ids=["Gemma-2-9b", "Llama-3-8B"],
)
def test_the_members_of_the_published_ensemble_train_exactly_what_was_published(tmp_path, shape, recipe, trainable):
    assert count_parameters(member_of(tmp_path, shape, recipe), labels=3).trainable == trainable


def test_the_total_is_the_base_with_lora_and_two_copies_of_the_head(tmp_path):
    count = count_parameters(member_of(tmp_path, GEMMA_2_2B, BINARY_2B), labels=2)
    base, lora, head = 2_614_341_888, 7_045_120, 2 * 2304
    assert count.trainable == lora + head
    assert count.total == base + lora + 2 * head


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("google/gemma-2-2b", GEMMA_2_2B),
        ("google/gemma-2-9b-it", GEMMA_2_9B),
        ("meta-llama/Meta-Llama-3-8B-Instruct", LLAMA_3_8B),
    ],
)
def test_the_shapes_known_here_are_those(name, shape):
    assert {key: BASES[name][key] for key in shape} == shape


@pytest.mark.parametrize("name", sorted(BASES))
def test_every_shape_known_here_is_one_that_transformers_understands(name):
    shape = dict(BASES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    assert {key: getattr(config, key) for key in shape} == shape


def test_the_command_counts_a_base_on_the_hub_without_fetching_it(train):
    path = Path(__file__).parents[2] / "configs" / "lmsys.toml"
    result = train("parameters", path, "--member", "llama", "--json")
    assert result.exit_code == 0, result.stderr
    # The published 8,030,261,248 without the language-model head, LoRA, and two copies of the score head.
    total = 8_030_261_248 - 128_256 * 4096 + 6_828_032 + 3 * 4096
    assert json.loads(result.stdout) == [{"member": "llama", "trainable": 6_828_032, "total": total}]
    assert "7,891,456" in train("parameters", path).stdout


def test_a_base_that_is_not_there_is_named(workplace, train):
    result = train("parameters", "small.toml")
    assert result.exit_code == 2
    assert "`base` of `gemma` is `build/small/bases/gemma`, which is neither a folder nor a hub id" in result.stderr
    assert "preference-train generate" in result.stderr
