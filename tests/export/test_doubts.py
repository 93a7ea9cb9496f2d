"""Adapters that are exported and yet odd: zero matrices, and targets that name no module."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from preference_export.app import app
from preference_export.checkpoint.adapter import read_adapter
from preference_export.checkpoint.architecture import architecture_of, hugging_face_config
from preference_export.checkpoint.doubts import doubts_of
from preference_export.graph.write import classifier_without_data, linear_modules


def doubts(base, folder):
    modules = linear_modules(classifier_without_data(architecture_of(hugging_face_config(base)), 3))
    return doubts_of(read_adapter(folder, modules), modules)


def zero(folder, only=""):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: torch.zeros_like(t) if "lora_B" in n and only in n else t for n, t in tensors.items()}, path)


def test_an_ordinary_adapter_gives_no_warning(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    assert doubts(base, make.adapter(tmp_path / "adapter", base)) == []


def test_a_target_that_names_no_module_is_named_with_the_nearest(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    (doubt,) = doubts(
        base, make.adapter(tmp_path / "adapter", base, target_modules=["q_proj", "vproj", "layers.1.mlp.up_proj"])
    )
    assert "`target_modules` names `vproj`" in doubt
    assert "Did you mean `v_proj`?" in doubt


def test_zero_matrices_are_named(make, tmp_path):
    base = make.base(tmp_path / "base", "llama")
    folder = make.adapter(tmp_path / "adapter", base)
    zero(folder, "layers.1.self_attn.q_proj")
    assert doubts(base, folder)[0].endswith(
        "`lora_B` of 1 of 6 modules is zero, the first is `model.layers.1.self_attn.q_proj`"
    )
    zero(folder)
    assert "every `lora_B` is zero" in doubts(base, folder)[0]


@pytest.mark.slow
def test_an_export_warns_whenever_it_runs(project):
    zero(project.folder / "adapter")
    for _ in range(2):
        run = CliRunner().invoke(app, ["onnx", "ensemble.toml"], catch_exceptions=False)
        assert "warning: Adapter `adapter`: every `lora_B` is zero" in run.stderr
