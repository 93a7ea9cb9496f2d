"""Streamed weights are those of PEFT's `merge_and_unload`, bit for bit."""

import json

import pytest
import torch
from architectures import ARCHITECTURES
from transformers import AutoModel, AutoModelForSequenceClassification

from preference_core.errors import CheckpointError
from preference_core.quiet_libraries import quiet_transformers
from preference_export.checkpoint import files as checkpoint
from preference_export.checkpoint.merge import HeadError
from preference_export.checkpoint.write import write_checkpoint

VARIANTS = {
    "an embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "an embedding by dora": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True, "use_rslora": True},
    "biases of adapted layers": {"bias": "lora_only"},
    "every bias": {"bias": "all"},
    "lora": {},
    "rank-stabilised": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rank-stabilised dora": {"use_dora": True, "use_rslora": True},
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 2, r".*\.1\.self_attn\.v_proj": 6},
        "alpha_pattern": {"v_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 32},
    },
    "every linear layer": {"target_modules": "all-linear"},
    "a pattern of targets": {"target_modules": r".*layers\.1\.(self_attn\.[qk]|mlp\.up)_proj"},
    "some layers": {"target_modules": ["k_proj", "o_proj"], "layers_to_transform": [1]},
    "trained embedding": {"modules_to_save": ["embed_tokens"]},
    "gaussian start": {"init_lora_weights": "gaussian", "lora_dropout": 0.05},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
}


def assert_equal_to_peft(make, base, adapter):
    expected = make.merged_by_peft(base, adapter)
    weights = make.weights(base, adapter)
    for name in weights.shapes:
        assert torch.equal(weights.tensor(name), expected[name]), name
    unmerged = make.weights(make_headed(base, adapter))
    changed = [name for name in weights.shapes if not torch.equal(weights.tensor(name), unmerged.tensor(name))]
    assert len(changed) >= 2, "an adapter without effect proves nothing"


def make_headed(base, adapter):
    """The base with some head, so that it can be read without its adapter."""
    folder = adapter.parent / "headed"
    if not folder.exists():
        with quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
            model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_adapter_merges_as_in_peft(make, tmp_path, variant):
    base = make.base(tmp_path / "base", "qwen2")
    adapter = make.adapter(tmp_path / "adapter", base, **VARIANTS[variant])
    assert_equal_to_peft(make, base, adapter)


def test_the_head_of_a_classifier_counts_though_the_adapters_settings_do_not_name_it(make, tmp_path):
    """As early versions of PEFT saved adapters; later ones add it when they load them."""
    base = make.base(tmp_path / "base", "llama")
    adapter = make.adapter(tmp_path / "adapter", base)
    settings = adapter / "adapter_config.json"
    table = json.loads(settings.read_text())
    assert table["modules_to_save"] == ["classifier", "score"]
    settings.write_text(json.dumps({**table, "modules_to_save": None}))
    assert_equal_to_peft(make, base, adapter)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
def test_fan_in_fan_out_is_overruled_for_linear_layers_as_in_peft(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    adapter = make.adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'))
    assert_equal_to_peft(make, base, adapter)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bases_in_bfloat16_and_in_shards_merge_as_in_peft(make, tmp_path, architecture):
    base = make.base(tmp_path / "base", architecture, dtype=torch.bfloat16, max_shard_size="40KB")
    assert len(list(base.glob("model-*-of-*.safetensors"))) > 2
    assert_equal_to_peft(make, base, make.adapter(tmp_path / "adapter", base))


def test_a_base_saved_without_any_head_is_read_too(make, tmp_path):
    whole = make.base(tmp_path / "whole", "llama")
    with quiet_transformers():
        AutoModel.from_pretrained(whole, dtype=torch.float32).save_pretrained(tmp_path / "base")
    assert_equal_to_peft(make, tmp_path / "base", make.adapter(tmp_path / "adapter", whole))


def test_without_an_adapter_the_base_brings_its_own_head(make, tmp_path):
    base = make.base(tmp_path / "base", "gemma2", head=True)
    weights = make.weights(base)
    stored = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32).state_dict()
    assert all(torch.equal(weights.tensor(name), stored[name]) for name in weights.shapes)


@pytest.mark.parametrize("variant", ["lora", "dora", "trained embedding"])
def test_adapters_of_several_folds_give_the_mean_of_their_merged_weights(make, tmp_path, variant):
    base = make.base(tmp_path / "base", "llama")
    one = make.adapter(tmp_path / "one", base, **VARIANTS[variant])
    other = make.adapter(tmp_path / "other", base, r=2, target_modules=["v_proj", "up_proj"])
    weights = make.weights(base, one, other)
    first, second = make.merged_by_peft(base, one), make.merged_by_peft(base, other)
    for name in weights.shapes:
        assert torch.equal(weights.tensor(name), (first[name] + second[name]) / 2), name


def test_every_one_of_several_adapters_must_fit(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    one, other = make.adapter(tmp_path / "one", base), make.adapter(tmp_path / "other", base, labels=2)
    with pytest.raises(HeadError, match=r"other` has shape \[2, 48\], expected \[3, 48\]"):
        make.weights(base, one, other)


def test_a_merge_is_computed_in_single_precision_and_rounded_once(make, tmp_path):
    base = make.base(tmp_path / "base", "gemma2", dtype=torch.bfloat16)
    adapter = make.adapter(tmp_path / "adapter", base)
    expected, weights = make.merged_by_peft(base, adapter), make.weights(base, adapter)
    for name in weights.shapes:
        assert torch.equal(torch.cat(list(weights.blocks(name, torch.float16))), expected[name].half())


def test_tensors_that_are_only_copied_come_in_bounded_blocks(make, tmp_path, monkeypatch):
    base = make.base(tmp_path / "base", "qwen2")
    weights = make.weights(base, make.adapter(tmp_path / "adapter", base))
    whole = weights.tensor("model.embed_tokens.weight")
    monkeypatch.setattr(checkpoint, "BLOCK_BYTES", 7 * whole.shape[1] * 4)
    blocks = list(weights.blocks("model.embed_tokens.weight", torch.float32))
    assert {len(block) for block in blocks[:-1]} == {7}
    assert torch.equal(torch.cat(blocks), whole)


def test_a_weight_that_half_precision_cannot_hold_is_refused_by_name(make, tmp_path):
    config = make.config("llama")
    base = make.base(tmp_path / "base", "llama", config=config)
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 70000.0
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    weights = make.weights(base, make.adapter(tmp_path / "adapter", base))
    list(weights.blocks("model.layers.1.mlp.up_proj.weight", torch.float32))
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*after rounding to float16"):
        list(weights.blocks("model.layers.1.mlp.up_proj.weight", torch.float16))


CLASSES = {
    "gemma2": "Gemma2ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}


@pytest.mark.parametrize(("architecture", "shard_bytes"), [("gemma2", 10**9), *((name, 50_000) for name in CLASSES)])
def test_the_merged_checkpoint_loads_in_transformers(make, tmp_path, architecture, shard_bytes):
    base = make.base(tmp_path / "base", architecture)
    adapter = make.adapter(tmp_path / "adapter", base)
    labels = ("winner_model_a", "winner_model_b", "winner_tie")
    target = tmp_path / "merged"
    target.mkdir()
    files = write_checkpoint(
        target, base, base, make.weights(base, adapter), labels, torch.float32, shard_bytes=shard_bytes
    )
    assert (len(files) == 1) == (shard_bytes == 10**9)
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(target)
    assert type(model).__name__ == CLASSES[architecture]
    assert tuple(model.config.id2label.values()) == labels
    expected = make.merged_by_peft(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
