"""The command: its words, its exit codes, and that the committed Triton sources are those it writes."""

import hashlib
import os
import shutil
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from preference_core.artefacts.manifest import read_manifest, verify
from preference_core.errors import Interrupted
from preference_core.quiet_libraries import quiet_transformers
from preference_export import stages
from preference_export.app import app, main


def test_results_go_to_stdout_one_line_each(project):
    result = CliRunner().invoke(app, ["all", "ensemble.toml"], catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["onnx", "check", "repository"]
    assert all("up to date" in line for line in lines)
    assert "max logit difference" in lines[1]


def test_a_run_with_nothing_to_do_reads_each_large_file_once(finished_project, tmp_path, monkeypatch):
    """The repository holds the members' files under second names, and they are the same files here, too."""
    shutil.copytree(finished_project.folder, tmp_path / "project", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "project")
    digest, read = hashlib.file_digest, []

    def counted(file, algorithm):
        read.append(os.fstat(file.fileno()).st_ino)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    project = replace(finished_project, folder=tmp_path / "project")
    assert not any(result["changed"] for result in project.run("all")["results"])
    weights = [path for path in project.folder.rglob("*") if path.name in ("model.onnx.data", "model.safetensors")]
    assert len(weights) == 3
    assert [read.count(path.stat().st_ino) for path in weights] == [1, 1, 1]
    assert len(read) == len(set(read))


def test_an_error_is_an_error_line_and_a_hint_on_stderr_and_an_exit_code(project, monkeypatch, capsys):
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "bf16"')
    monkeypatch.setattr(sys, "argv", ["preference-export", "all", "ensemble.toml"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr() == (
        "",
        "error: Member `gemma`: ONNX Runtime does not run bf16 on a CPU\n"
        'hint: Use `precision = "fp16"` or "fp32" there; or set `gpus`, or `engine = "tensorrt"`.\n',
    )


@pytest.mark.slow
def test_a_changed_adapter_is_exported_checked_and_served_again_with_the_same_graph(project):
    """Only the weights change, and what the ensembles say of their content: all else comes out as the same bytes."""
    before = read_manifest(project.config.folders.repository).files
    path = project.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.score.weight"] *= 2
    save_file(tensors, path, metadata={"format": "pt"})
    summary = project.run("all")
    assert [result["changed"] for result in summary["results"]] == [True, True, True]
    assert summary["results"][-1]["version"] == 2
    repository = verify(project.config.folders.repository)
    after = {name.replace("/2/", "/1/"): record for name, record in repository.files.items()}
    changed = {name for name in before if before[name] != after[name]}
    ensembles = {"preference_ensemble/config.pbtxt", "preference_ensemble_symmetric/config.pbtxt"}
    assert changed == {"gemma/1/model.onnx.data", *ensembles}
    assert before.keys() == after.keys()


@pytest.mark.slow
def test_folds_merged_into_a_rounded_base_keep_the_numbers_of_their_original(make, project):
    """The original is the rounded base with each adapter merged by PEFT, and the mean of these."""
    make.adapter(project.folder / "other", project.folder / "base", r=2, target_modules=["k_proj", "gate_proj"])
    project.edit('adapter = "adapter"', 'adapter = ["adapter", "other"]\nbase_rounding = "nf4"')
    results = project.run("all")["results"]
    assert [result["changed"] for result in results] == [True, True, True]
    _, check, _ = results
    assert check["max_logit_difference"] < 1e-4
    inputs = read_manifest(project.config.folders.exported("gemma")).made_from["inputs"]
    assert inputs.keys() == {"base", "adapter 1", "adapter 2"}


def test_merge_writes_a_checkpoint_that_transformers_loads(project):
    (result,) = project.run("merge")["results"]
    with quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(project.folder / result["folder"])
    assert model.config.label2id == {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 2}
    assert (project.folder / result["folder"] / "tokenizer.json").exists()


def test_sources_are_written_without_engines(project):
    project.run("sources", "-o", "out")
    output = project.folder / "out"
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert {path for path in written if not path.endswith("config.pbtxt")} == {
        "tokenize/1/model.py",
        "combine/1/model.py",
        "combine_symmetric/1/model.py",
    }
    assert len(written) == 6 + 3


def test_ctrl_c_says_what_is_done_and_what_the_next_run_makes_of_it(project, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "check", interrupted)
    with pytest.raises(Interrupted, match="done: onnx gemma") as caught:
        project.run("all")
    monkeypatch.undo()
    monkeypatch.chdir(project.folder)
    assert caught.value.exit_code == 130
    assert "takes what is done as it is" in caught.value.hint
    assert not any(result["changed"] for result in project.run("all")["results"])


@pytest.mark.slow
def test_paths_with_spaces_brackets_and_accents_are_exported(project, monkeypatch):
    """The working directory, base, adapter, sample, configuration and the ensemble's own name."""
    odd = project.folder.rename(project.folder.with_name("é (1) mon dossier [x]"))
    monkeypatch.chdir(odd)
    for name in ("base", "adapter"):
        (odd / name).rename(odd / f"{name} (é) 1")
    (odd / "battles.csv").rename(odd / "battles #é (1).csv")
    shutil.rmtree(odd / "build")
    text = "\ufeff" + (odd / "ensemble.toml").read_text(encoding="utf-8")
    for name in ("base", "adapter"):
        text = text.replace(f'= "{name}"', f'= "{name} (é) 1"')
    (odd / "my (é) file.toml").write_text(text.replace("battles.csv", "battles #é (1).csv"), encoding="utf-8")
    run = CliRunner().invoke(app, ["all", "my (é) file.toml", "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    assert (odd / "build" / "tiny" / "repository" / "gemma").is_dir()
