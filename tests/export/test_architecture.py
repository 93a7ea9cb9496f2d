"""Checkpoints written by transformers 4 and 5, with every supported variation, are read alike and computed alike."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from preference_export.checkpoint.architecture import (
    ArchitectureError,
    architecture_of,
    check_scores,
    hugging_face_config,
)
from preference_export.graph.packed import COMPUTED, PackedClassifier

LLAMA_3_1_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}
GEMMA_3_LAYERS = [*(["sliding_attention"] * 5), "full_attention", "sliding_attention"]
VARIATIONS = {
    "default rope": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "attention and mlp biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head size of its own": ("llama", {"head_dim": 12}),
    "one head per group": ("llama", {"num_key_value_heads": 6}),
    "one layer": ("gemma2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}),
    "no soft-cap": ("gemma2", {"attn_logit_softcapping": None}),
    "window in every other layer": ("gemma2", {"sliding_window": 16}),
    "window of one token": ("mistral", {"sliding_window": 1}),
    "window as long as the longest text": ("mistral", {"sliding_window": 60}),
    "no window": ("mistral", {"sliding_window": None}),
    "window in the first layer only": (
        "qwen2",
        {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "biases": ("qwen3", {"attention_bias": True}),
    "local layers only": ("gemma3_text", {"layer_types": ["sliding_attention"] * 2}),
    "global layers only": ("gemma3_text", {"layer_types": ["full_attention"] * 2}),
    "local layers that see all": ("gemma3_text", {"sliding_window": 64}),
    "five local layers to one": ("gemma3_text", {"num_hidden_layers": 7, "layer_types": GEMMA_3_LAYERS}),
    "four layers": ("qwen2", {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}),
}


def test_more_attention_scores_than_a_tensor_of_tensorrt_holds_are_refused_before_anything_is_built():
    check_scores(32, 15, 2048, 2048)
    with pytest.raises(ArchitectureError, match="2,147,483,648 attention scores per block") as caught:
        check_scores(32, 16, 2048, 2048)
    assert "`serving.max_batch_size` to 15 or less" in str(caught.value.hint)
    check_scores(32, 127, 2048, 256)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_every_variation_has_the_originals_logits(make, sequences, variation):
    architecture, changes = VARIATIONS[variation]
    config = make.config(architecture, **changes, num_labels=make.labels, pad_token_id=None)
    original = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in original.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    description = architecture_of(config).for_length(64)
    packed = PackedClassifier(description, make.labels)
    computed = {name: getattr(description, key) for name, key in COMPUTED.items() if getattr(description, key)}
    packed.load_state_dict({**original.state_dict(), **{name: torch.tensor(computed[name]) for name in computed}})
    with torch.inference_mode():
        expected = torch.cat([original(torch.from_numpy(ids).long()[None]).logits for ids in sequences])
        lengths = [len(ids) for ids in sequences]
        inputs = (np.concatenate(sequences), np.array(lengths), np.zeros(max(lengths)))
        logits = packed(*(torch.from_numpy(values.astype(np.int32)) for values in inputs))
    assert (logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_1_ROPE},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA_3_1_ROPE}},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_rope_settings_are_read_as_either_version_wrote_them(make, tmp_path, rope):
    settings = make.config("llama").to_dict()
    del settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**settings, **rope}))
    found = architecture_of(hugging_face_config(tmp_path))
    assert found == architecture_of(make.config("llama"))


@pytest.mark.parametrize(
    ("architecture", "changes", "windows"),
    [
        ("qwen2", {}, (None, None)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}, (None, 20)),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 20, "max_window_layers": 1}, (None, None)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}, (None, None)),
        ("gemma2", {}, (64, None)),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, (None, None)),
        ("gemma3_text", {}, (20, None)),
        ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 1}, (None, None)),
        ("mistral", {}, (20, 20)),
        ("mistral", {"sliding_window": None}, (None, None)),
        ("llama", {"sliding_window": 20, "layer_types": ["sliding_attention"] * 2}, (None, None)),
    ],
)
def test_windows_are_those_of_the_layers_that_transformers_gives_one(make, tmp_path, architecture, changes, windows):
    settings = make.config(architecture).to_dict()
    if architecture == "qwen2":  # what a hub checkpoint says, which has no `layer_types`
        del settings["layer_types"]
    (tmp_path / "config.json").write_text(json.dumps({**settings, **changes}))
    found = architecture_of(hugging_face_config(tmp_path))
    assert found.windows == windows


def test_a_window_that_hides_nothing_is_dropped(make):
    architecture = architecture_of(make.config("gemma2"))
    assert architecture.for_length(64).windows == (None, None)
    assert architecture.for_length(65).windows == (64, None)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_the_two_rotary_bases_of_gemma_3_are_read_as_either_version_wrote_them(make, tmp_path, rope):
    settings = make.config("gemma3_text").to_dict()
    if rope:
        del settings["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**settings, **rope}))
    found = architecture_of(hugging_face_config(tmp_path))
    assert found == architecture_of(make.config("gemma3_text"))
    assert found.inverse_frequencies[1] == pytest.approx(1e6 ** (-2 / 16) / 8)
    assert found.local_inverse_frequencies[1] == pytest.approx(1e4 ** (-2 / 16))
