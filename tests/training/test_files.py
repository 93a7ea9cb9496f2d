"""Files that commands read and write: named as they are called, and refused before anything long begins."""

from pathlib import Path

import pytest
from configurations import configuration, length_buckets_member

from preference_training.synthetic.battles import generate
from preference_training.synthetic.write import write_battles

LENGTH = configuration(
    length_buckets_member("build/some/baseline"),
    name="some",
    data={part: "battles.csv" for part in ("train", "validation", "test")},
)
SPLIT = """
[training.split]
source = "everything.csv"
"""


@pytest.fixture
def length(tmp_path, monkeypatch):
    """A configuration that needs no checkpoint, fitted, with its predictions."""
    monkeypatch.chdir(tmp_path)
    write_battles(Path("battles.csv"), generate(60, 1, "train"))
    Path("some.toml").write_text(LENGTH, encoding="utf-8")
    return Path("some.toml")


@pytest.fixture
def fitted(length, train):
    assert train("fit", length).exit_code == 0
    assert train("predict", length).exit_code == 0
    return length


@pytest.mark.parametrize("name", ["run[a]", "[/b]", "a:smile:b"])
def test_names_that_look_like_markup_are_shown_as_they_are(fitted, train, name):
    Path(name).mkdir(parents=True)
    for command, option, file in (
        ("predict", "--output", "p.csv"),
        ("weights", "--output", "w.toml"),
        ("twin", "--out", "t.toml"),
        ("evaluate", "--report", "r.html"),
    ):
        target = f"{name}/{file}"
        given = ["--predictions", "build/some/validation_predictions.csv"] if command == "evaluate" else []
        result = train(command, fitted, *given, option, target)
        assert result.exit_code == 0, result.stderr
        assert target in result.stderr
        assert Path(target).is_file()


def test_groups_that_look_like_markup_are_shown_as_they_are(fitted, train):
    lines = Path("battles.csv").read_text(encoding="utf-8").splitlines()
    header, *rows = (f"{line},{language}" for line, language in zip(lines, ["language"] + ["[/b]"] * 60, strict=True))
    Path("battles.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
    result = train("evaluate", fitted, "--predictions", "build/some/validation_predictions.csv")
    assert result.exit_code == 0, result.stderr
    assert "[/b]" in result.stdout


@pytest.mark.parametrize(
    ("command", "option", "target"),
    [
        ("predict", "--output", "out.csv"),
        ("weights", "--output", "out.toml"),
        ("twin", "--out", "out.toml"),
        ("evaluate", "--report", "out.html"),
    ],
)
def test_an_output_that_is_a_folder_is_refused_before_anything_is_read(length, train, command, option, target):
    Path(target).mkdir()
    result = train(command, length, option, target)
    assert result.exit_code == 2
    assert result.stderr == f"error: The output `{target}` is a folder\nhint: Name a file.\n"


def test_only_folders_of_the_project_are_made_for_an_output(fitted, train):
    text = LENGTH.replace("[data]", '[combine]\ninclude = "new/weights.toml"\n[data]')
    Path("some.toml").write_text(text, encoding="utf-8")
    refused = train("weights", fitted, "-o", "an other/weights.toml")
    assert refused.stderr.endswith("error: There is no folder `an other`\nhint: Make it: `mkdir -p 'an other'`.\n")
    assert train("weights", fitted).exit_code == 0
    assert Path("new/weights.toml").is_file()


def test_weights_name_the_line_that_includes_them_from_where_the_configuration_lies(fitted, train):
    Path("configs").mkdir()
    moved = fitted.rename("configs/some.toml")
    result = train("weights", moved)
    line = 'include = "../build/some/weights.toml"'
    assert line in result.stderr
    text = moved.read_text(encoding="utf-8").replace("[data]", f"[combine]\n{line}\n[data]")
    moved.write_text(text, encoding="utf-8")
    again = train("weights", moved)
    assert "`preference-export repository configs/some.toml` puts it into the repository" in again.stderr


@pytest.mark.parametrize("command", ["fit", "baseline", "predict", "weights", "evaluate"])
def test_missing_battles_of_the_user_are_named_by_their_key(length, train, command):
    Path("battles.csv").unlink()
    result = train(command, length)
    part = {"fit": "train", "baseline": "train", "evaluate": "test"}.get(command, "validation")
    assert result.exit_code == 2
    assert "There is no file or folder `battles.csv`" in result.stderr
    assert f"hint: It is `data.{part}` of the configuration." in result.stderr


def test_missing_battles_that_a_command_writes_come_with_it(length, train):
    text = LENGTH.replace('"battles.csv"', '"build/some/data/train.csv"') + SPLIT
    length.write_text(text, encoding="utf-8")
    assert "hint: `preference-train split CONFIG` writes it." in train("fit", length).stderr
    assert "hint: It is `training.split.source` of the configuration." in train("split", length).stderr
    generated = '[training.battles]\n[training.split]\nsource = "build/some/source/battles.csv"'
    length.write_text(text.replace(SPLIT.strip(), generated), encoding="utf-8")
    assert "hint: `preference-train generate CONFIG` writes it." in train("split", length).stderr


def test_missing_predictions_come_with_what_writes_them(length, train):
    assert "hint: `preference-train predict some.toml` writes it." in train("weights", length).stderr
    assert "`preference-score`" in train("evaluate", length).stderr


@pytest.mark.parametrize("command", ["baseline", "weights", "evaluate"])
def test_a_seed_is_at_least_0(fitted, train, command):
    result = train(command, fitted, "--seed", -1)
    assert result.exit_code == 2
    assert "'--seed'" in result.stderr
