"""How every command of the project ends when it fails."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from preference_core.command import run_command

#: Each command with arguments that name a file that cannot be read, which has a cause.
COMMANDS = {
    "preference-train": ["generate", "broken.toml"],
    "preference-export": ["all", "broken.toml"],
    "preference-serve": ["broken.toml"],
    "preference-score": ["missing.csv", "-o", "out.csv"],
}
CAUSE = "The above exception was the direct cause of the following exception:"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "broken.toml").write_text("name =")

    def finish(command, *arguments, **environment):
        line = [Path(sys.executable).with_name(command), *arguments]
        result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stdout) == (2, "")
        return result.stderr

    return finish


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_the_causes_of_an_error_only_when_asked(run, command):
    brief = run(command, *COMMANDS[command])
    assert brief.startswith("error: ")
    assert len(brief.splitlines()) <= 2
    whole = run(command, *COMMANDS[command], "--traceback")
    assert whole.endswith(brief)
    assert whole.startswith("Traceback")
    assert CAUSE in whole


@pytest.mark.slow
def test_the_environment_can_ask_for_the_causes_too(run):
    assert CAUSE in run("preference-score", *COMMANDS["preference-score"], PREFERENCE_TRACEBACK="1")
    assert CAUSE not in run("preference-score", *COMMANDS["preference-score"], PREFERENCE_TRACEBACK="0")


def test_what_stands_behind_two_dashes_belongs_to_another_command(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["x", "--traceback", "serve", "--", "echo", "--traceback"])
    run_command(seen.extend)
    assert seen == ["serve", "--", "echo", "--traceback"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_its_version(command):
    line = [Path(sys.executable).with_name(command), "--version"]
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout == f"{command} 0.1.0\n"


def commands_of(name, command):
    """Every command below a Typer application, with the arguments that lead to it."""
    yield name, command
    for below, subcommand in getattr(command, "commands", {}).items():
        yield from commands_of((*name, below), subcommand)


@pytest.mark.parametrize(
    "package", ["preference_client", "preference_embedded", "preference_export", "preference_training"]
)
def test_help_shows_every_word_of_every_text(package, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    app = importlib.import_module(f"{package}.app").app
    for name, command in commands_of((), typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*name, "--help"]).stdout
        texts = [
            command.help or "",
            command.epilog or "",
            *(getattr(option, "help", None) or "" for option in command.params),
        ]
        for word in " ".join(texts).replace("`", "").split():
            assert word in shown, f"{package} {' '.join(name)}: {word}"
