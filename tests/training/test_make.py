"""What `make demo` and `make twin` run: the real recipes, with stand-ins for the commands that note their arguments."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTE = '#!/bin/sh\necho "$(basename "$0")" "$@" >>"$NOTES"\n'
#: As `preference-serve --run`: puts an address into the command, and runs it.
SERVE = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$(echo "$last" | sed "s/{url}/127.0.0.1:4711/g")"\n'


@pytest.fixture
def made(tmp_path):
    """Runs a target in an empty folder; returns the commands it ran, as lists of words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "preference-train": NOTE,
        "preference-export": NOTE,
        "preference-score": NOTE,
        "preference-serve": SERVE,
    }.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    (folder / ".installed").touch()

    def run(*arguments):
        notes = tmp_path / "notes"
        environment = {"PATH": os.environ["PATH"], "NOTES": str(notes)}
        command = [
            "make",
            "-f",
            ROOT / "Makefile",
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
