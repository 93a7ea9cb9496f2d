"""The README's commands, as printed: those that train and serve are run by the other scenarios through `make demo`."""

import os
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +(?:PREFERENCE_REPOSITORY=\S+ )?((?:make|\.venv/bin/)[^#\n]*)", README, re.MULTILINE)


def commands(start):
    return [command.strip() for command in COMMANDS if command.startswith(start)]


def default_ports_are_free():
    for port in (8000, 8001, 8002):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


@pytest.fixture(scope="module")
def served(demo):
    """`make serve` as the README prints it, on the default ports."""
    if not default_ports_are_free():
        pytest.skip("another program listens on Triton's default ports")
    (command,) = commands("make serve")
    with subprocess.Popen(
        shlex.split(command),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready after"):
                break
        else:
            pytest.fail("".join(said))
        yield
        os.killpg(process.pid, signal.SIGTERM)
        process.stdout.read()


def test_every_make_target_of_the_readme_exists():
    for command in commands("make"):
        subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)
    assert {"make demo", "make test"} <= set(commands("make"))


def test_the_scoring_commands_of_the_readme_work_as_printed(served, demo, tmp_path):
    scoring = commands(".venv/bin/preference-score")
    assert len(scoring) >= 2
    for command in scoring:
        arguments = shlex.split(command)
        output = tmp_path / arguments[arguments.index("-o") + 1]
        arguments[arguments.index("-o") + 1] = str(output)
        arguments[0] = str(ROOT / arguments[0])
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
        lines = output.read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1 + len(demo.rows("data/test.csv"))
        assert lines[0].startswith("id,winner_model_a,winner_model_b,winner_tie")
        assert ("--submission" in arguments) == (lines[0].count(",") == 3)


def test_the_request_of_the_readme_gets_the_answer_that_is_printed(served, capsys):
    """As printed, but for the probabilities: the demo's models are trained on this machine."""
    ((snippet, answer),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    exec(snippet, {})
    printed = capsys.readouterr().out
    assert re.sub(r"0\.\d+", "#", printed).split() == re.sub(r"0\.\d+", "#", answer).split()


def test_the_figures_of_a_dry_run_are_those_of_the_readme():
    (command,) = commands(".venv/bin/preference-export all")
    run = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False)
    found = set(re.findall(r"\d+\.\d [GM]B", run.stdout))
    (table,) = re.findall(r"^\| base .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert found
    assert found == set(re.findall(r"\d+\.\d [GM]B", table))


def test_the_comparison_with_own_predictions_of_the_readme_works_as_printed(demo):
    """Here those of the demo, and battles that the exporter has not seen."""
    (command,) = commands(".venv/bin/preference-export check")
    files = {"own_predictions.csv": "build/demo/predictions.csv", "battles.csv": "build/demo/data/test.csv"}
    arguments = [files.get(argument, argument) for argument in shlex.split(command)]
    run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
