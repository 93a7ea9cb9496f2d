"""`preference-export init` writes a configuration that exports as it is, and says what it cannot know."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors
from typer.testing import CliRunner

from preference_core.ensemble.loading import load_config
from preference_core.errors import UserError
from preference_export.app import app


def init(*arguments):
    result = CliRunner().invoke(app, ["init", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def amend(path, **more):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **more}))


@pytest.mark.slow
def test_what_it_writes_for_adapters_is_exported_and_served_as_it_is(project, make):
    make.adapter(project.folder / "checkpoints" / "Second LoRA" / "checkpoint-300", project.folder / "base")
    out = init("--adapter", "adapter", "--adapter", "checkpoints/Second LoRA/checkpoint-300", "--sample", "battles.csv")
    assert "fill in" not in out
    assert [member.name for member in load_config("ensemble.toml").members] == ["project", "second_lora"]
    run = CliRunner().invoke(app, ["all", "ensemble.toml"], catch_exceptions=False)
    assert run.exit_code == 0, run.output


@pytest.fixture
def project(project):
    (project.folder / "ensemble.toml").unlink()
    return project


def test_what_the_files_say_is_written(project):
    tokenizer = Tokenizer.from_file("base/tokenizer.json")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])
    tokenizer.enable_truncation(40, direction="left")
    tokenizer.save("adapter/tokenizer.json")
    amend(
        project.folder / "adapter" / "tokenizer_config.json",
        **json.loads(Path("base/tokenizer_config.json").read_text()),
    )
    amend(project.folder / "adapter" / "config.json", id2label=dict(enumerate(["tie", "model_a", "model_b"])))
    init("my own.toml", "--adapter", "adapter", "--base", "base", "--sample", "battles.csv")
    config = load_config("my own.toml")
    (member,) = config.members
    assert (config.name, config.labels) == ("my-own", ("tie", "model_a", "model_b"))
    assert (member.base, member.adapter, member.max_tokens) == ("base", "adapter", 40)
    assert (member.template.add_bos, member.template.add_eos, member.truncation.policy) == (True, False, "left")
    assert "GUESS: no checkpoint says which words" in Path("my own.toml").read_text()


def test_what_cannot_be_known_is_a_commented_line_that_says_what_to_fill_in(project):
    amend(project.folder / "adapter" / "adapter_config.json", base_model_name_or_path="someone/a-base")
    out = init("--adapter", "adapter")
    lines = Path("ensemble.toml").read_text().splitlines()
    for key in ("revision", "template", "sample"):
        (line,) = (line for line in lines if line.startswith(f"# {key} = "))
        assert "FILL IN" in line
        assert f"`{key}`: " in out
        assert tomllib.loads(line.removeprefix("# "))
    amend(project.folder / "adapter" / "adapter_config.json", base_model_name_or_path="/kaggle/input/a-base")
    assert "`base`: the folder where that base is" in init("other.toml", "--adapter", "adapter")


def test_labels_that_cannot_be_used_as_they_are_named_are_said(project):
    amend(project.folder / "adapter" / "config.json", id2label=dict(enumerate(["first", "second", "neither"])))
    out = init("--adapter", "adapter", "--sample", "battles.csv")
    assert "`head_labels` of a member may differ" in out
    assert tomllib.loads(Path("ensemble.toml").read_text())["labels"] == ["first", "second", "neither"]


def test_a_base_with_its_own_head_is_described_too(project, make):
    make.base(project.folder / "headed", "llama", head=True)
    init("--base", "headed")
    table = tomllib.loads(Path("ensemble.toml").read_text())
    assert table["member"][0]["base"] == "headed"
    assert table["labels"] == ["winner_model_a", "winner_model_b", "winner_tie"]


def test_the_command_of_the_readme_works_as_printed(project):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"preference-export init (.*)", readme)
    for folder in re.findall(r"--adapter (\S+)", line):
        shutil.copytree("adapter", folder)
    assert "fill in" not in init(*line.split())
    assert [member.name for member in load_config("my.toml").members] == ["gemma_lora", "llama_lora"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to describe"),
        (["battles.csv", "--adapter", "adapter"], "already there"),
        (["--adapter", "base"], "holds no adapter"),
        (["--adapter", "someone/an-adapter"], "is not a folder"),
        (["--adapter", "adapter", "--base", "base", "--base", "base"], "2 bases for 1 adapters"),
        (["--base", "base"], "has no classification head"),
    ],
)
def test_what_it_cannot_describe_is_refused(project, arguments, message):
    with pytest.raises(UserError, match=message):
        init(*arguments)


def test_one_member_is_exported_alone(project, make):
    make.adapter(project.folder / "second", project.folder / "base")
    init("--adapter", "second", "--adapter", "adapter", "--sample", "battles.csv")
    (project.folder / "second" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no member `secnd`"):
        CliRunner().invoke(app, ["onnx", "ensemble.toml", "--member", "secnd"], catch_exceptions=False)
    config = load_config("ensemble.toml")
    assert [member.name for member in config.alone("second").members] == ["second"]
