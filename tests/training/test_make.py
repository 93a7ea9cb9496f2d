"""What `make demo`, `make twin` and `make real` run: the real recipes, whose commands are stand-ins that note their
arguments.
"""

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier, ParityLimits
from preference_training.fit.recipe import recipe_of
from preference_training.synthetic.generate import generation_of

ROOT = Path(__file__).parents[2]
NOTE = '#!/bin/sh\necho "$(basename "$0")" "$@" >>"$NOTES"\n'
#: Answers for an original where there is no answer yet, and leaves what the rest of the recipe reads.
EXPORT = NOTE + (
    'answers=build/$(basename "$2" .toml)/originals; mkdir -p $answers; '
    '[ -e $answers/gemma ] || echo "$2" >$answers/gemma\n'
)
PYTHON = NOTE + 'for last; do :; done\ncase "$last" in *.md) touch "$last" ;; */bases) mkdir -p "$last" ;; esac\n'
#: As `preference-serve --run`: puts an address into the command, and runs it.
SERVE = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$(echo "$last" | sed "s/{url}/127.0.0.1:4711/g")"\n'


@pytest.fixture
def made(tmp_path):
    """Runs a target in an empty folder; returns the commands it ran, as lists of words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "preference-train": NOTE,
        "preference-export": EXPORT,
        "preference-score": NOTE,
        "preference-serve": SERVE,
        "python": PYTHON,
    }.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / ".installed").touch()
    shutil.copy(ROOT / "Makefile", tmp_path)

    def run(*arguments):
        notes = tmp_path / "notes"
        environment = {"PATH": os.environ["PATH"], "NOTES": str(notes)}
        command = [
            "make",
            f"BIN={folder}",
            f"SERVER_BIN={folder}",
            "-o",
            folder / ".installed",
        ]
        subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True)
        return [shlex.split(line) for line in notes.read_text().splitlines()]

    return run


def one(commands, *start):
    (found,) = [command for command in commands if command[: len(start)] == list(start)]
    return found


@pytest.mark.parametrize(
    ("target", "build"), [(["demo"], "build/demo"), (["twin", "CONFIG=configs/light.toml"], "build/light-twin")]
)
def test_both_orders_are_scored_on_one_server_and_evaluated(made, target, build):
    commands = made(*target)
    first, second = (command for command in commands if command[0] == "preference-score")
    both = [f"{build}/data/test.csv", "--url", "127.0.0.1:4711"]
    assert sorted(first[1:]) == sorted([*both, "-o", f"{build}/predictions.csv"])
    assert sorted(second[1:]) == sorted([*both, "-o", f"{build}/predictions_symmetric.csv", "--symmetric"])
    evaluated = one(commands, "preference-train", "evaluate")
    assert evaluated[evaluated.index("--predictions") + 1] == f"{build}/predictions.csv"
    assert evaluated[evaluated.index("--symmetric") + 1] == f"{build}/predictions_symmetric.csv"
    assert evaluated[evaluated.index("--report") + 1] == f"{build}/report.html"


@pytest.mark.parametrize(
    ("text", "extra"),
    [
        ("", []),
        ('[training.split]\nsource = "x"\n', ["split"]),
        ('[combine]\ninclude = "w.toml"\n', ["predict", "weights"]),
    ],
    ids=["plain", "split", "include"],
)
def test_a_twin_is_split_and_weighted_where_its_configuration_says_so(made, tmp_path, text, extra):
    twin = tmp_path / "build" / "twins" / "some.toml"
    twin.parent.mkdir(parents=True)
    twin.write_text(text)
    trained = [command[1] for command in made("twin", "CONFIG=configs/some.toml") if command[0] == "preference-train"]
    order = ["twin", "generate", "split", "baseline", "fit", "predict", "weights", "evaluate"]
    always = ("twin", "generate", "baseline", "fit", "evaluate")
    assert trained == [name for name in order if name in (*always, *extra)]


@pytest.fixture
def real(made, tmp_path):
    """Runs `make real` on a file of battles, where there are all the files that it reads."""
    for folder in ("configs", "requirements", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    battles = tmp_path / "my battles.csv"
    battles.write_text("battles")
    return lambda: made("real", f"BATTLES={battles}")


def test_real_goes_from_the_weights_to_the_report(real, tmp_path):
    commands = real()
    assert (tmp_path / "build/real/battles.csv").read_text() == "battles"
    configs = ["configs/real.toml", *(f"build/real-{precision}.toml" for precision in ("fp16", "int8", "fp8"))]
    exported = [["all", config, "--member", member] for config in configs[1:] for member in ("gemma", "llama")]
    assert [command[1:] for command in commands if command[0] == "preference-export"] == [
        ["all", configs[0]],
        *exported,
    ]
    trained = [command[1:3] for command in commands if command[0] == "preference-train"]
    order = ["split", "fit", "predict", "weights", "predict", "evaluate"]
    assert trained == [[name, configs[0]] for name in order]
    scored = [command for command in commands if command[0] == "preference-score"]
    assert ["--symmetric" in command for command in scored] == [True, False]
    assert [command[:2] for command in commands if command[0] == "python"] == [
        ["python", "-m"],
        ["python", "benchmarks/pretrained_bases.py"],
        ["python", "benchmarks/real.py"],
    ]


def test_real_goes_on_only_where_the_gate_refuses_a_precision_that_is_not_served(real, tmp_path):
    refuses = tmp_path / "bin/preference-export"
    refuses.write_text(EXPORT + 'case "$2" in *fp8*) exit 3 ;; esac\n')
    commands = real()
    assert commands[-1][:2] == ["preference-train", "evaluate"]
    for code in ("exit 3", *(f'case "$2" in *fp8*) exit {code} ;; esac' for code in (1, 2))):
        refuses.write_text(EXPORT + code + "\n")
        with pytest.raises(subprocess.CalledProcessError):
            real()


def test_each_precision_of_real_is_compared_with_the_same_answers_of_the_originals(real, tmp_path):
    real()
    stale = tmp_path / "build/real-int8/originals"
    (stale / "gemma").write_text("another base's")
    (stale / "removed").touch()
    real()
    assert [path.name for path in stale.iterdir()] == ["gemma"]
    for precision in ("fp16", "int8", "fp8"):
        assert (tmp_path / f"build/real-{precision}/originals/gemma").read_text() == "configs/real.toml\n"
    (tmp_path / "bin/preference-export").write_text(NOTE + "rm -rf build/real/originals\n")
    real()
    assert not stale.exists()


def test_real_does_nothing_again_that_is_newer_than_what_it_is_made_of(real, tmp_path):
    real()
    folder = tmp_path / "build/real"
    for made_of in ("adapters/gemma", "repository"):
        (folder / made_of).mkdir(parents=True)
        (folder / made_of / "manifest.json").touch()
    for name in ("weights.toml", "predictions.csv", "original.csv", "figures.md"):
        (folder / name).touch()
    (tmp_path / "notes").unlink()
    again = [command[1] for command in real() if command[0] != "preference-export"]
    assert again == ["split", "fit", "evaluate"]
    os.utime(folder / "weights.toml", (0, 0))
    (tmp_path / "notes").unlink()
    again = [command[1] for command in real() if command[0] != "preference-export"]
    assert again == ["split", "fit", "predict", "weights", "evaluate"]


def test_the_precisions_of_real_differ_in_nothing_else(real, tmp_path, monkeypatch):
    real()
    monkeypatch.chdir(tmp_path)
    expected = load_config(Path("configs/real.toml"), include_may_be_missing=True)
    for precision in ("fp16", "int8", "fp8"):
        found = load_config(Path(f"build/real-{precision}.toml"), include_may_be_missing=True)
        members = tuple(
            replace(member, precision=precision, parity=ParityLimits()) if isinstance(member, Classifier) else member
            for member in expected.members
        )
        assert found == replace(expected, name=f"real-{precision}", members=members)


def test_real_without_battles_says_which_it_wants(made, tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        made("real", "-o", "build/real/bases/.written", "BATTLES=absent.csv")
    assert b"hint: make real BATTLES=" in error.value.stderr


def test_each_fold_of_real_has_battles_and_adapters_of_its_own(real, made, tmp_path, monkeypatch):
    real()
    (tmp_path / "notes").unlink()
    for fold in range(5):
        folder = tmp_path / f"build/real-fold-{fold}"
        folder.mkdir()
        for name in ("predictions", "swapped"):
            (folder / f"{name}.csv").write_text(f"header\n{name} {fold}\n")
    commands = [command[1:3] for command in made("real-folds") if command[0] == "preference-train"]
    order = ["split", "fit", "predict", "weights", "predict", "predict"]
    assert commands[-1] == ["evaluate", "build/real-folds.toml"]
    assert commands[:-1] == [[name, f"build/real-fold-{fold}.toml"] for fold in range(5) for name in order]
    assert (tmp_path / "build/real-folds/swapped.csv").read_text().split("\n")[:3] == [
        "header",
        "swapped 0",
        "swapped 1",
    ]
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("build/real-fold-3.toml"), include_may_be_missing=True)
    expected = load_config(Path("configs/real.toml"), include_may_be_missing=True)
    split = generation_of(config).split
    assert (split.source, split.folds, split.fold) == ("build/real/battles.csv", 5, 3)
    assert [member.base for member in config.members[:2]] == [member.base for member in expected.members[:2]]
    written = [*(member.adapter for member in config.members[:2]), config.members[2].base, config.data.train]
    assert all(path.startswith("build/real-fold-3/") for path in written)
    assert [recipe_of(member) for member in config.members[:2]] == [
        recipe_of(member) for member in expected.members[:2]
    ]


def test_a_fold_is_predicted_again_only_when_its_recipe_is_another_one(real, made, tmp_path, monkeypatch):
    real()
    for fold in range(5):
        (tmp_path / f"build/real-fold-{fold}").mkdir()
        for name in ("predictions", "swapped"):
            (tmp_path / f"build/real-fold-{fold}/{name}.csv").write_text("header\n")

    def fitted(*recipe):
        (tmp_path / "notes").unlink()
        commands = made("real-folds", *recipe)
        for fold in range(5):
            (tmp_path / f"build/real-fold-{fold}/swapped.csv").touch()
        return ["fit" in command for command in commands].count(True)

    quick = ("FOLD_EPOCHS=0.01", "FOLD_PRECISION=bf16")
    assert [fitted(), fitted(), fitted(*quick), fitted(*quick)] == [5, 0, 5, 0]
    monkeypatch.chdir(tmp_path)
    member = load_config(Path("build/real-fold-3.toml"), include_may_be_missing=True).members[0]
    assert (recipe_of(member).epochs, recipe_of(member).precision) == (0.01, "bf16")
