"""Every committed configuration is complete, and can be planned without a network."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from preference_core.artefacts.contents import seal_of
from preference_core.artefacts.manifest import read_manifest, write_manifest
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.published import BASES
from preference_core.ensemble.settings import Classifier, LengthBaseline
from preference_core.errors import UserError
from preference_export.app import app
from preference_export.checkpoint.architecture import FAMILIES, architecture_of
from preference_export.checkpoint.shapes import published_parameters
from preference_export.engine.profiles import profiles_of
from preference_export.graph.casts import written_specs
from preference_export.graph.precision import dtypes_of
from preference_export.graph.quantise import quantised_gemms
from preference_export.graph.write import checkpoint_shapes, classifier_without_data, linear_modules, parameter_specs
from preference_export.kinds import jobs_of
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
PUBLISHED = [path for path in CONFIGS if path.stem not in ("demo", "real")]


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
    result = CliRunner().invoke(app, ["all", str(path), "--dry-run"])
    assert isinstance(result.exception, UserError), "nothing was fitted yet"
    classifiers = [member for member in config.members if isinstance(member, Classifier)]
    for member in config.members:
        assert f"{member.name}: {member.base}" in result.stdout
        wanted = f"adapter {member.adapter}" if member in classifiers else f"base {member.base}"
        assert f"missing      {wanted}" in result.stdout
    most = f"latency: up to {config.serving.max_batch_size} sequences, "
    assert result.stdout.count(most) == len(classifiers)
    assert not list(Path.cwd().iterdir())


def test_the_plan_of_gemma_2_9b_has_the_published_numbers():
    config = load_config(next(path for path in CONFIGS if path.stem == "lmsys"))
    plan = plan_of(jobs_of(config)[0])
    assert plan.parameters == 9_241_705_984 + 3 * 3584
    assert plan.bytes_in == 2 * 9_241_705_984
    assert 18.4e9 < plan.bytes_out < 18.6e9
    # 2.28 GiB were measured (docs/performance.md).
    assert 2.3 * 1024**3 < plan.export_memory_bytes < 4 * 1024**3
    assert plan.profiles == profiles_of(2048, 8)
    assert plan.scores_bytes == 4 * 8 * 16 * 256 * 2048


@pytest.mark.parametrize("hub_id", sorted(BASES))
def test_published_shapes_have_the_published_number_of_parameters(hub_id):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**BASES[hub_id]))
    assert sum(parameter.numel() for parameter in model.parameters()) == published_parameters(hub_id)


def test_a_plan_of_a_base_at_hand_is_what_the_export_then_writes(project):
    exported = next(result for result in project.run("all")["results"] if result["stage"] == "onnx")
    result = CliRunner().invoke(app, ["all", "ensemble.toml", "--dry-run", "--json"], catch_exceptions=False)
    (plan,) = json.loads(result.stdout)["plan"]
    assert plan["shapes_from"] == "its config.json and the headers of its weights"
    assert plan["bytes_out"] == pytest.approx(exported["weight_bytes"], rel=1e-3)
    assert plan["missing"] == []


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_bytes_of_a_plan_are_those_of_the_exported_parameters(make, tmp_path, architecture, precision):
    """But for frequencies and scales, which are few, and fewer in a base that is not tiny."""
    make.base(tmp_path / "base", architecture)
    (tmp_path / "own.toml").write_text(
        OWN.replace("someone/own-model", "base").replace('revision = "main"', f'precision = "{precision}"')
    )
    (job,) = jobs_of(load_config(tmp_path / "own.toml"))
    model = classifier_without_data(architecture_of(make.config(architecture)), 3)
    dtypes = dtypes_of(job.member)
    specs = written_specs(parameter_specs(model), dtypes, quantised_gemms(linear_modules(model), dtypes))
    written = sum(spec.bytes for spec in specs.values())
    assert plan_of(job).bytes_out == pytest.approx(written, rel=0.08 if precision == "int8" else 1e-3)
    assert plan_of(job).parameters == sum(math.prod(shape) for shape in checkpoint_shapes(model).values())


def test_a_base_whose_shapes_are_not_known_is_named_with_the_way_to_get_them(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    (job,) = jobs_of(load_config(tmp_path / "own.toml"))
    with pytest.raises(UserError, match="`someone/own-model`, which is not on this machine") as caught:
        plan_of(job)
    assert "hf download someone/own-model config.json --revision main" in caught.value.hint


def dry_run(project):
    """What a dry run says of each artefact, by stage; it leaves every file as it is."""
    before = seal_of(project.folder)
    results = project.run("all", "--dry-run")["results"]
    assert seal_of(project.folder) == before
    return {result["stage"]: result.get("because", "") for result in results}


def test_a_dry_run_says_what_is_up_to_date(project):
    assert dry_run(project) == {"onnx": "", "check": "", "repository": ""}


def test_a_dry_run_says_what_was_never_made(project):
    shutil.rmtree(project.folder / "build")
    assert dry_run(project) == {
        "onnx": "it does not exist yet",
        "check": "`onnx` is to be made",
        "repository": "`gemma` is to be made",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "because"),
    [
        ("max_tokens = 48", "max_tokens = 40", {"onnx": "`settings` changed (max_tokens)"}),
        (
            '"battles.csv"',
            '"others.csv"',
            {"onnx": "", "check": "`sample` changed", "repository": ""},
        ),
        (
            "max_tokens = 48",
            "max_tokens = 48\nparity = { max_logit_difference = 0.1 }",
            {"onnx": "", "check": "`limits` changed (max_logit_difference)"},
        ),
        (
            "[data]",
            "[combine]\ntemperatures = { gemma = 2.0 }\n\n[data]",
            {"check": "", "repository": "`content` changed"},
        ),
    ],
)
def test_a_dry_run_says_why_something_is_to_be_made(project, old, new, because):
    battles = (project.folder / "battles.csv").read_text()
    (project.folder / "others.csv").write_text(battles + "99,p,a,b,1,0,0\n")
    project.edit(old, new)
    told = dry_run(project)
    changed = {result["stage"]: result["changed"] for result in project.run("all")["results"]}
    assert because.items() <= told.items()
    assert {stage: bool(why) for stage, why in told.items()} == changed


def test_a_dry_run_names_the_input_that_changed_and_the_file_that_was_damaged(project):
    path = project.folder / "adapter" / "adapter_config.json"
    path.write_text(path.read_text() + "\n")
    assert dry_run(project)["onnx"] == "`inputs` changed (adapter)"
    path.write_text(path.read_text()[:-1])
    (project.folder / "build" / "tiny" / "members" / "gemma" / "model.onnx").write_bytes(b"no")
    assert "has 2 bytes" in dry_run(project)["onnx"]


def test_a_repository_waits_for_a_comparison_that_was_never_made(project):
    folder = project.config.folders.exported("gemma")
    write_manifest(folder, replace(read_manifest(folder), parity={}))
    told = dry_run(project)
    assert (told["check"], told["repository"]) == ("not compared yet", "`gemma` is to be compared")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("model_type", "bloom", "Architecture `bloom` is not supported"), ("hidden_size", "wide", None)],
)
def test_a_dry_run_refuses_an_architecture_that_the_run_would_refuse(project, key, value, said):
    path = project.folder / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError) as caught:
        project.run("all")
    if said is None:  # what only Transformers can tell
        assert dry_run(project)["onnx"] == "`inputs` changed (base)"
        return
    with pytest.raises(UserError) as too:
        project.run("all", "--dry-run")
    assert too.value.message == caught.value.message == said


def test_a_dry_run_refuses_a_batch_that_tensorrt_cannot_hold(project):
    project.edit("max_tokens = 48", 'max_tokens = 8192\nengine = "tensorrt"')
    project.edit("max_batch_size = 8", "max_batch_size = 4096")
    with pytest.raises(UserError, match="attention scores per block; a tensor of TensorRT holds"):
        project.run("all", "--dry-run")


def test_a_dry_run_refuses_weights_that_are_not_fitted_yet_after_saying_what_the_run_takes(project):
    project.edit("[data]", '[combine]\ninclude = "weights.toml"\n\n[data]')
    result = CliRunner().invoke(app, ["all", "ensemble.toml", "--dry-run"])
    assert "There is no file `weights.toml`" in result.exception.message
    assert "gemma: base (gemma2, 2 layers)" in result.stdout
