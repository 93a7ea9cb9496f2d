"""Adapters saved by wrapped models, by a plain `state_dict`, in shards or with a resized embedding are read as PEFT
would have read them, had it saved them itself."""

import json
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from preference_core.errors import CheckpointError
from preference_core.quiet_libraries import quiet_transformers
from preference_export.app import app
from preference_export.checkpoint.files import TensorFiles
from preference_export.original.layered import LayeredReference
from preference_export.original.whole import Reference

SEQUENCES = [np.random.default_rng(0).integers(3, 300, length).astype(np.int32) for length in (20, 5)]
WRAPPED = [
    ("^", "_orig_mod.", "torch.compile"),
    (r"^base_model\.model\.", "base_model.model._orig_mod.", "torch.compile"),
    ("^", "module.", "DistributedDataParallel"),
    (r"\.self_attn\.", "._fsdp_wrapped_module.self_attn.", "FSDP"),
    (r"\.mlp\.", "._checkpoint_wrapped_module.mlp.", "activation checkpointing"),
    (r"(lora_[AB])", r"\1.default", "`default.`"),
    (r"(lora_[AB]|lora_magnitude_vector)(\.weight)?$", r"\1.fold_2.weight", "`fold_2.`"),
    (r"score\.weight", "score.modules_to_save.default.weight", "`default.`"),
]


def renamed(folder, pattern, replacement):
    path = folder / "adapter_model.safetensors"
    tensors = {re.sub(pattern, replacement, name): tensor for name, tensor in load_file(path).items()}
    assert tensors.keys() != load_file(path).keys()
    save_file(tensors, path, metadata={"format": "pt"})


def merged(make, base, adapter):
    weights = make.weights(base, adapter)
    return {name: weights.tensor(name) for name in weights.shapes}


@pytest.mark.parametrize(("pattern", "replacement", "whose"), WRAPPED)
def test_a_wrappers_prefix_is_read_and_named(make, tmp_path, pattern, replacement, whose):
    base = make.base(tmp_path / "base", "llama")
    adapter = make.adapter(tmp_path / "adapter", base, use_dora=True)
    plain, logits = merged(make, base, adapter), Reference(base, [adapter], 3).logits(SEQUENCES)
    renamed(adapter, pattern, replacement)
    (read,) = make.weights(base, adapter).adapters
    assert whose in "".join(read.wrappers)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged(make, base, adapter).items())
    for original in (Reference(base, [adapter], 3), LayeredReference(base, adapter, 3, TensorFiles(base))):
        np.testing.assert_array_equal(original.logits(SEQUENCES), logits)


@pytest.mark.slow
def test_an_export_says_which_prefix_it_left_out(project):
    renamed(project.folder / "adapter", "^", "_orig_mod.")
    run = CliRunner().invoke(app, ["all", "ensemble.toml"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert "warning: Adapter `adapter`: the names of its tensors hold `_orig_mod.` (torch.compile)" in run.stderr


def test_two_adapters_in_one_file_are_refused(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    path = make.adapter(tmp_path / "adapter", base) / "adapter_model.safetensors"
    tensors = load_file(path)
    second = {name.replace("lora_A.", "lora_A.b."): tensor + 1 for name, tensor in tensors.items() if "lora_A" in name}
    save_file({**tensors, **second}, path)
    with pytest.raises(CheckpointError, match=r"holds two tensors `base_model\.model\.model\.layers\.0"):
        make.weights(base, tmp_path / "adapter")


def test_an_adapter_in_shards_is_read(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    adapter = make.adapter(tmp_path / "adapter", base)
    plain, logits = merged(make, base, adapter), Reference(base, [adapter], 3).logits(SEQUENCES)
    path = adapter / "adapter_model.safetensors"
    tensors, shards = load_file(path), {}
    for number, (name, tensor) in enumerate(tensors.items()):
        shards.setdefault(f"adapter_model-{number % 2}.safetensors", {})[name] = tensor
    for shard, part in shards.items():
        save_file(part, adapter / shard)
    path.unlink()
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in merged(make, base, adapter).items())
    np.testing.assert_array_equal(Reference(base, [adapter], 3).logits(SEQUENCES), logits)


def with_added_tokens(project, **lora):
    """Trains as an owner would who adds two tokens: the tokenizer and the resized embedding are in the adapter."""
    base, adapter = project.folder / "base", project.folder / "adapter"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<unused{number}>" for number in range(rows - len(tokenizer))])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj"], **lora)
    peft_model = get_peft_model(model, settings)
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad or "embed_tokens" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.2
    peft_model.save_pretrained(adapter, save_embedding_layers=True)
    tokenizer.save_pretrained(adapter)
    return len(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("modules_to_save", [None, ["embed_tokens", "score"]])
def test_an_embedding_that_training_resized_is_exported_with_its_tokens(project, modules_to_save):
    rows = with_added_tokens(project, modules_to_save=modules_to_save)
    assert "max_logit_difference" in next(r for r in project.run("all")["results"] if r["stage"] == "check")
    exported = Tokenizer.from_file("build/tiny/members/gemma/tokenizer.json")
    assert exported.token_to_id("<b>") == rows - 1
    sequence = [np.asarray([5, rows - 2, rows - 1, 7], dtype=np.int32)]
    project.run("merge")
    with quiet_transformers():
        base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3, dtype=torch.float32)
        base.resize_token_embeddings(rows, mean_resizing=False)
        expected = PeftModel.from_pretrained(base, "adapter")(torch.from_numpy(sequence[0]).long()[None]).logits
    np.testing.assert_allclose(
        Reference("build/tiny/merged/gemma", [], 3).logits(sequence), expected.detach(), atol=1e-5
    )


def test_an_added_token_without_its_row_is_refused(project):
    with_added_tokens(project)
    path = project.folder / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "embed_tokens" not in name}, path)
    with pytest.raises(Exception, match=r"gives `<a>` the id 300, and the embedding has 300 rows"):
        project.run("onnx")
