"""Every committed configuration is complete, and can be planned without a network."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier, LengthBaseline
from preference_core.errors import UserError
from preference_export.app import app
from preference_export.checkpoint.architecture import architecture_of
from preference_export.checkpoint.published import BASES
from preference_export.engine.profiles import profiles_of
from preference_export.graph.write import classifier_without_data, parameter_specs
from preference_export.plan import plan_of
from preference_training.fit.recipe import recipe_of
from preference_training.synthetic.generate import generation_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
OWN = """
name = "own"

[[member]]
name = "m"
base = "someone/own-model"
revision = "main"
template = "gemma"
max_tokens = 64
"""
PUBLISHED = [path for path in CONFIGS if path.stem != "demo"]


@pytest.fixture(autouse=True)
def elsewhere(request, tmp_path, monkeypatch):
    """No checkpoint of this machine is found: plans rest on the table of published bases."""
    if "project" not in request.fixturenames:
        monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def names(path):
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=names)
def test_every_committed_configuration_reads_and_so_do_its_recipes(path):
    config = load_config(path, include_may_be_missing=True)
    assert config.name == path.stem
    assert config.data.sample, "a configuration without sample battles cannot be exported"
    generation_of(config)
    for member in config.members:
        if isinstance(member, Classifier):
            recipe_of(member)


@pytest.mark.parametrize("path", PUBLISHED, ids=names)
def test_bases_are_pinned_to_a_commit(path):
    for member in load_config(path, include_may_be_missing=True).members:
        if isinstance(member, LengthBaseline):
            continue
        assert member.revision is not None
        assert len(member.revision) == 40
        int(member.revision, 16)


@pytest.mark.parametrize("path", PUBLISHED, ids=names)
def test_a_dry_run_prints_the_plan_of_every_member(path):
    config = load_config(path, include_may_be_missing=True)
    result = CliRunner().invoke(app, ["all", str(path), "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    classifiers = [member for member in config.members if isinstance(member, Classifier)]
    for member in config.members:
        assert f"{member.name}: {member.base}" in result.stdout
        wanted = f"adapter {member.adapter}" if member in classifiers else f"buckets {member.base}"
        assert f"missing      {wanted}" in result.stdout
    most = f"latency: up to {config.serving.max_batch_size} sequences, "
    assert result.stdout.count(most) == len(classifiers)
    assert not list(Path.cwd().iterdir())


def test_the_plan_of_gemma_2_9b_has_the_published_numbers():
    config = load_config(next(path for path in CONFIGS if path.stem == "lmsys"))
    plan = plan_of(config, config.members[0])
    score, frequencies = 3 * 3584, 128
    assert plan.parameters == 9_241_705_984 + score + frequencies
    assert plan.bytes_in == 2 * 9_241_705_984
    assert 18.4e9 < plan.bytes_out < 18.6e9
    # 2.28 GiB were measured (docs/performance.md).
    assert 2.3 * 1024**3 < plan.export_memory_bytes < 4 * 1024**3
    assert plan.profiles == profiles_of(2048, 8)
    assert plan.scores_bytes == 4 * 8 * 16 * 256 * 2048


@pytest.mark.parametrize("hub_id", sorted(BASES))
def test_published_shapes_have_the_published_number_of_parameters(hub_id):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(BASES[hub_id].config())
    assert sum(parameter.numel() for parameter in model.parameters()) == BASES[hub_id].parameters


def test_a_plan_of_a_base_at_hand_is_what_the_export_then_writes(project):
    exported = next(result for result in project.run("all")["results"] if result["stage"] == "onnx")
    result = CliRunner().invoke(app, ["all", "ensemble.toml", "--dry-run", "--json"], catch_exceptions=False)
    (plan,) = json.loads(result.stdout)["plan"]
    assert plan["shapes_from"] == "its config.json"
    assert plan["bytes_out"] == exported["weight_bytes"]
    assert plan["missing"] == []


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_bytes_of_a_plan_are_those_of_the_exported_parameters(make, tmp_path, precision, dtype):
    config = make.config("qwen2")
    config.save_pretrained(tmp_path / "base")
    (tmp_path / "own.toml").write_text(
        OWN.replace("someone/own-model", "base").replace('revision = "main"', f'precision = "{precision}"')
    )
    specs = parameter_specs(classifier_without_data(architecture_of(config), 3, dtype))
    ensemble = load_config(tmp_path / "own.toml")
    assert plan_of(ensemble, ensemble.members[0]).bytes_out == sum(spec.bytes for spec in specs.values())


def test_a_base_whose_shapes_are_not_known_is_named_with_the_way_to_get_them(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    config = load_config(tmp_path / "own.toml")
    with pytest.raises(UserError, match="`someone/own-model`, which is not on this machine") as caught:
        plan_of(config, config.members[0])
    assert "hf download someone/own-model config.json --revision main" in caught.value.hint
