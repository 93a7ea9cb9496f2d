"""The original model one layer at a time: the same numbers as whole, in the memory of one layer."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file

from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import SystemFailure
from preference_export.checkpoint.files import TensorFiles
from preference_export.gate import compare
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.original import member as originals
from preference_export.original import memory
from preference_export.original.layered import LayeredReference
from preference_export.original.whole import Reference

SEQUENCES = [np.random.default_rng(0).integers(3, 300, length).astype(np.int32) for length in (20, 1, 70)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {"use_dora": True, "use_rslora": True},
                {"layers_to_transform": [1], "modules_to_save": ["embed_tokens", "score"]},
                {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
                {"target_modules": ["embed_tokens", "k_proj"], "use_dora": True},
                {"bias": "all"},
            )
        ),
    ],
)
def test_logits_are_those_of_the_whole_model_bit_for_bit(make, tmp_path, architecture, settings):
    base = make.base(tmp_path / "base", architecture, dtype=torch.bfloat16, max_shard_size="40KB")
    adapter = make.adapter(tmp_path / "adapter", base, **settings)
    layered = LayeredReference(base, adapter, 3, TensorFiles(base))
    expected = Reference(base, [adapter], 3).logits(SEQUENCES)
    for _ in range(2):
        np.testing.assert_array_equal(layered.logits(SEQUENCES), expected)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_classifier_without_adapter_may_leave_out_the_prefix_of_its_names(make, tmp_path, prefix):
    base = make.base(tmp_path / "base", "llama", head=True)
    expected = Reference(base, [], 3).logits(SEQUENCES)
    tensors = load_file(base / "model.safetensors")
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(LayeredReference(base, None, 3, TensorFiles(base)).logits(SEQUENCES), expected)


def test_every_tensor_is_read_once_and_one_layer_is_in_memory_at_a_time(make, tmp_path, monkeypatch):
    base = make.base(tmp_path / "base", "llama", config=make.config("llama", num_hidden_layers=6))
    adapter = make.adapter(tmp_path / "adapter", base)
    files = TensorFiles(base)
    layered = LayeredReference(base, adapter, 3, files)
    parameters = dict.fromkeys(layered._model.parameters())
    layers = list(layered._model.model.layers)
    read, in_memory = [], []

    def watched(name):
        read.append(name)
        in_memory.append([number for number, layer in enumerate(layers) if _base_bytes(layer, parameters) > 0])
        return TensorFiles.read(files, name)

    monkeypatch.setattr(files, "read", watched)
    layered.logits(SEQUENCES)
    in_layers = [name for name in read if ".layers." in name]
    assert sorted(in_layers) == sorted(name for name in files.tensors if ".layers." in name)
    assert len(set(read)) == len(read)
    assert max(map(len, in_memory)) == 1
    assert all(_base_bytes(layer, parameters) == 0 for layer in layers)


def _base_bytes(layer, absent):
    """Bytes of what has been read into a layer: adapters and stand-ins were there before."""
    return sum(parameter.nbytes for parameter in layer.parameters() if parameter not in absent)


def test_a_tensor_that_is_not_there_is_named(make, tmp_path):
    base = make.base(tmp_path / "base", "qwen2", head=True)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemFailure, match=r"found no tensor `model\.layers\.1\.mlp\.up_proj\.weight`"):
        LayeredReference(base, None, 3, TensorFiles(base)).logits(SEQUENCES)


def test_the_gate_compares_with_little_memory_what_it_compares_with_much(project, monkeypatch):
    folder = project.folder / "build" / "tiny" / "members" / "gemma"
    plentiful = read_manifest(folder).parity
    opened = []

    def noted(kind):
        return lambda *arguments: opened.append((kind, arguments[-1])) or kind(*arguments)

    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setattr(originals, "LayeredReference", noted(LayeredReference))
    monkeypatch.setattr(compare, "OnnxClassifier", noted(OnnxClassifier))
    project.run("check")
    (reference, _), (artefact, frugal) = opened
    assert (reference, artefact, frugal) == (LayeredReference, OnnxClassifier, True)
    scarce = read_manifest(folder).parity
    assert scarce["sequences"] == plentiful["sequences"]
    for name in ("max_logit_difference", "mean_logit_difference", "max_probability_difference"):
        assert scarce[name] == pytest.approx(plentiful[name], abs=1e-6)


def test_a_container_with_little_memory_counts_as_a_machine_with_little(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT", limit)
    plentiful = memory.free_memory()
    limit.write_text("max\n")
    assert memory.free_memory() > plentiful / 2
    limit.write_text("1000000000\n")
    assert memory.free_memory() < 1_000_000_000
    assert not memory.fits(0, "cpu")
