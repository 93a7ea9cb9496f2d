"""Bases in 4 and 8 bits: read without bitsandbytes, as bitsandbytes itself would read them."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from preference_core.errors import CheckpointError, UserError
from preference_export.checkpoint.architecture import architecture_of, hugging_face_config
from preference_export.checkpoint.quantised_base import QuantisedFiles, dequantised_8bit
from preference_export.checkpoint.rounding import ROUNDINGS, RoundedFiles, open_base
from preference_export.checkpoint.write import write_checkpoint
from preference_export.graph.write import classifier_without_data, linear_modules
from preference_export.original.whole import Reference

LAYER = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def bitsandbytes():
    """The library's own arithmetic; `make install` puts it into a folder that nothing else looks into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(sys.prefix) / "comparison"))
        return pytest.importorskip("bitsandbytes").functional


def random_weight(shape, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.05).to(dtype)


def packed_by_hand(name, codes, table, scales, shape, dtype="float32", kind="nf4", **state):
    """One 4-bit tensor as bitsandbytes stores it, under the names that it gives the parts."""
    settings = {"quant_type": kind, "blocksize": 64, "dtype": dtype, "shape": list(shape), **state}
    return {
        name: codes.reshape(-1, 1),
        f"{name}.absmax": scales,
        f"{name}.quant_map": table,
        f"{name}.quant_state.bitsandbytes__{kind}": torch.tensor(
            list(json.dumps(settings).encode()), dtype=torch.uint8
        ),
    }


def quantised_base(folder, base, quantise):
    """A copy of a checkpoint whose linear layers went through `quantise(name, weight)`, which gives tensors by name."""
    folder.mkdir()
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        tensors.update(quantise(name, tensor) if name.endswith("_proj.weight") else {name: tensor})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def nf4_by_hand(name, weight):
    """NF4 with the codes drawn at random: what they stand for is what counts."""
    generator = torch.Generator().manual_seed(5)
    count = weight.numel()
    codes = torch.randint(0, 256, (count // 2,), generator=generator, dtype=torch.uint8)
    scales = torch.rand(-(-count // 64), generator=generator)
    return packed_by_hand(name, codes, torch.linspace(-1, 1, 16), scales, weight.shape)


def int8_by_hand(name, weight):
    generator = torch.Generator().manual_seed(6)
    codes = torch.randint(-127, 128, weight.shape, generator=generator, dtype=torch.int8)
    module = name.removesuffix(".weight")
    return {name: codes, f"{module}.SCB": weight.abs().amax(1), f"{module}.weight_format": torch.tensor(0).byte()}


@pytest.mark.parametrize("double", [True, False], ids=["double quantisation", "plain scales"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_what_bitsandbytes_reads_in_them(bitsandbytes, tmp_path, kind, dtype, double):
    for number, shape in enumerate([(96, 128), (33, 66), (7, 10)]):
        codes, state = bitsandbytes.quantize_4bit(
            random_weight(shape, dtype), quant_type=kind, compress_statistics=double, blocksize=64
        )
        parts = {f"{LAYER}.{part}": tensor for part, tensor in state.as_dict(packed=True).items()}
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({LAYER: codes, **parts}, folder / "model.safetensors")
        files = QuantisedFiles(folder)
        assert list(files.tensors) == [LAYER]
        assert files.tensors[LAYER].shape == shape
        ours, theirs = files.read(LAYER), bitsandbytes.dequantize_4bit(codes, state)
        assert ours.dtype == theirs.dtype == dtype
        assert torch.equal(ours, theirs)


def test_eight_bits_are_what_bitsandbytes_reads_in_them(bitsandbytes):
    codes, scales, _ = bitsandbytes.int8_vectorwise_quant(random_weight((33, 64), torch.float16))
    assert torch.equal(dequantised_8bit(codes, scales), bitsandbytes.int8_vectorwise_dequant(codes, scales))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(96, 128), (33, 66), (7, 10)])
def test_weights_are_rounded_as_bitsandbytes_rounds_them(bitsandbytes, dtype, shape):
    weight = random_weight(shape, dtype)
    nf4 = bitsandbytes.dequantize_4bit(*bitsandbytes.quantize_4bit(weight, quant_type="nf4", blocksize=64))
    assert torch.equal(ROUNDINGS["nf4"](weight), nf4)
    codes, scales, _ = bitsandbytes.int8_vectorwise_quant(weight.half())
    int8 = bitsandbytes.int8_vectorwise_dequant(codes, scales).to(dtype)
    assert torch.equal(ROUNDINGS["int8"](weight), int8)


def test_the_upper_half_of_a_byte_comes_first_and_every_block_has_its_scale(tmp_path):
    """By hand, without bitsandbytes: 130 values, so that the last block is a short one."""
    codes = torch.tensor([0x1F, *[0x00] * 31, 0xF0, *[0x00] * 31, 0x2F], dtype=torch.uint8)
    scales = torch.tensor([1.0, 2.0, 4.0])
    tensors = packed_by_hand(LAYER, codes, torch.arange(16.0), scales, (13, 10), "float16")
    save_file(tensors, tmp_path / "model.safetensors")
    expected = torch.zeros(130, dtype=torch.float16)
    expected[[0, 1, 64, 128, 129]] = torch.tensor([1, 15, 30, 8, 60], dtype=torch.float16)
    assert torch.equal(QuantisedFiles(tmp_path).read(LAYER), expected.reshape(13, 10))


@pytest.mark.parametrize("quantise", [nf4_by_hand, int8_by_hand])
def test_adapters_merge_into_the_dequantised_base_as_in_peft(make, tmp_path, quantise):
    """The same numbers, stored plainly, are the base that PEFT merges into."""
    base = make.base(tmp_path / "base", "llama")
    adapter = make.adapter(tmp_path / "adapter", base)
    quantised = quantised_base(tmp_path / "quantised", base, quantise)
    files = QuantisedFiles(quantised)
    plain = {name: files.read(name).float() for name in files.tensors}
    assert plain.keys() == load_file(base / "model.safetensors").keys()
    save_file(plain, base / "model.safetensors", metadata={"format": "pt"})
    weights, expected = make.weights(quantised, adapter), make.merged_by_peft(base, adapter)
    assert all(torch.equal(weights.tensor(name), expected[name]) for name in weights.shapes)
    write_checkpoint(tmp_path / "merged", quantised, quantised, weights, ("a", "b", "tie"), torch.float32)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded.score.weight, expected["score.weight"])


@pytest.mark.parametrize("rounding", ["nf4", "int8"])
def test_on_request_adapters_merge_into_the_base_as_training_rounded_it(make, tmp_path, rounding):
    base = make.base(tmp_path / "base", "qwen2")
    adapter = make.adapter(tmp_path / "adapter", base)
    into_original = make.weights(base, adapter).tensor(LAYER)
    weights = make.weights(base, adapter, rounding=rounding)
    into_rounded = {name: weights.tensor(name) for name in weights.shapes}
    tensors = load_file(base / "model.safetensors")
    rounded = {name: ROUNDINGS[rounding](t) if name.endswith("_proj.weight") else t for name, t in tensors.items()}
    save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})
    expected = make.merged_by_peft(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in into_rounded.items())
    assert not torch.equal(into_original, into_rounded[LAYER])


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_the_original_of_a_rounded_base_computes_in_32_bits_whatever_the_base_is_stored_in(
    make, tmp_path, architecture
):
    """Gemma-2 multiplies by the root of its width, which 16 bits round."""
    base = make.base(tmp_path / "base", architecture, dtype=torch.bfloat16)
    adapter = make.adapter(tmp_path / "adapter", base)
    config = hugging_face_config(base)
    modules = linear_modules(classifier_without_data(architecture_of(config), 3))
    files = open_base(base, config, "nf4", modules)
    plainly = shutil.copytree(base, tmp_path / "plainly")
    save_file(
        {name: files.read(name).float() for name in files.tensors},
        plainly / "model.safetensors",
        metadata={"format": "pt"},
    )
    ids = [np.arange(5, 25, dtype=np.int32)]
    np.testing.assert_allclose(
        Reference(base, [adapter], 3, files).logits(ids), Reference(plainly, [adapter], 3).logits(ids), atol=1e-6
    )


def test_rounding_reads_the_head_and_the_embedding_as_they_are(make, tmp_path):
    base = make.base(tmp_path / "base", "llama", head=True)
    files = RoundedFiles(base, "nf4", ["score", "model.layers.0.self_attn.q_proj"])
    assert files.rounded == {LAYER}


def test_rounding_what_is_rounded_already_is_refused(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    quantised = quantised_base(tmp_path / "quantised", base, nf4_by_hand)
    with pytest.raises(
        UserError, match=r"`base_rounding` is `int8`, the base .* is stored in that or another rounding"
    ):
        make.weights(quantised, rounding="int8")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(f"{LAYER}.absmax"), "lacks its part `absmax`"),
        (lambda t: t.update({f"{LAYER}.absmax": torch.ones(3)}), "has 1920 bytes and 3 scales"),
        (lambda t: t.update({f"{LAYER}.quant_state.bitsandbytes__nf4": torch.zeros(4).byte()}), "cannot be read"),
        (lambda t: t.update({"other.SCB": torch.ones(4)}), "belong to no 8-bit tensor `other.weight`"),
    ],
)
def test_torn_quantised_tensors_are_refused_by_name(tmp_path, change, named):
    tensors = nf4_by_hand(LAYER, torch.zeros(60, 64))
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=named):
        QuantisedFiles(tmp_path).read(LAYER)


def test_a_layout_of_one_gpu_type_is_refused(tmp_path):
    tensors = {
        **int8_by_hand(LAYER, torch.ones(4, 8)),
        LAYER.removesuffix(".weight") + ".weight_format": torch.tensor(1),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="layout of one GPU type"):
        QuantisedFiles(tmp_path)
