"""Calibration measures what the original model's layers read, once, and is asked for by those who need it."""

import shutil
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from preference_core.artefacts.manifest import verify
from preference_core.errors import ArtefactError
from preference_export.original.activations import measured_ranges
from preference_export.original.whole import Reference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ["gemma3_text", "llama", "mistral", "qwen3"])
def test_modelopt_measures_the_largest_magnitude_of_every_feature(tracer, make, sequences, architecture):
    pytest.importorskip("modelopt")
    traced = tracer.of(architecture)
    ranges = measured_ranges(Reference(traced.base, [traced.adapter], make.labels), sequences)
    assert ranges.keys() == traced.ranges.keys()
    for name, largest in ranges.items():
        torch.testing.assert_close(largest, traced.ranges[name], rtol=1e-4, atol=1e-5)


def test_a_calibration_is_made_once(project):
    pytest.importorskip("modelopt")
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp8"')
    (result,) = project.run("calibrate")["results"]
    assert result["changed"] is True
    assert verify(project.folder / result["folder"]).details["sequences"] == 10
    assert project.run("calibrate")["results"][0]["changed"] is False


def test_a_calibration_counts_where_modelopt_is_not_installed_and_not_with_another_version_of_it(project, monkeypatch):
    pytest.importorskip("modelopt")
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp8"')
    project.run("calibrate")

    def another(package):
        return "another" if package == "nvidia-modelopt" else version(package)

    def absent(package):
        if package == "nvidia-modelopt":
            raise PackageNotFoundError(package)
        return version(package)

    with monkeypatch.context() as patch:
        patch.setattr("preference_core.artefacts.artefact.version", absent)
        assert project.run("calibrate")["results"][0]["changed"] is False
    monkeypatch.setattr("preference_core.artefacts.artefact.version", another)
    assert project.run("calibrate")["results"][0]["changed"] is True


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("max_tokens = 48", "max_tokens = 40", "other settings"),
        ('base = "base"', 'base = "another"', "other files of `base` and `adapter`"),
        ('adapter = "adapter"', 'adapter = "other"', "other files of `base` and `adapter`"),
    ],
)
def test_a_calibration_of_another_model_or_of_other_settings_is_not_used(make, project, old, new, named):
    pytest.importorskip("modelopt")
    make.base(project.folder / "another", "gemma2", config=make.config("gemma2", sliding_window=48))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(project.folder / "base" / name, project.folder / "another" / name)
    make.adapter(project.folder / "other", project.folder / "base", r=2, target_modules=["k_proj"])
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp8"')
    project.run("calibrate")
    project.edit(old, new)
    with pytest.raises(ArtefactError, match=named) as caught:
        project.run("onnx")
    assert "preference-export calibrate" in caught.value.hint
    assert project.run("calibrate")["results"][0]["changed"] is True


def test_without_a_calibration_nothing_is_quantised_statically(project):
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp8"')
    with pytest.raises(ArtefactError, match="`gemma` is not calibrated") as caught:
        project.run("onnx")
    assert "preference-export calibrate" in caught.value.hint


def test_gemms_that_are_kept_for_their_ranges_are_shown_and_named_in_the_manifest(project):
    pytest.importorskip("modelopt")
    static = 'precision = "int8"\nquantisation = { method = "static", keep_above = 1.0 }'
    project.edit("max_tokens = 48", f"max_tokens = 48\n{static}")
    project.run("calibrate")
    (result,) = project.run("onnx")["results"]
    manifest = verify(project.folder / result["folder"])
    assert manifest.details["doubts"][-1].startswith("`gemma`: 14 of 14 GEMMs stay in 16 bits")
    assert result["gemms_kept"] == len(manifest.details["gemms_kept"]) == 14
    assert result["gemms_quantised"] == 0
    assert manifest.details["gemms_kept"][0] == "model.layers.0.self_attn.q_proj"
    kept_bytes = result["weight_bytes"]
    project.edit("keep_above = 1.0", "keep_above = 1000")
    (result,) = project.run("onnx")["results"]
    assert "gemms_kept" not in result
    details = verify(project.folder / result["folder"]).details
    assert (details["gemms_kept"], details["gemms_quantised"], details["doubts"]) == ([], 14, [])
    assert result["weight_bytes"] < kept_bytes
