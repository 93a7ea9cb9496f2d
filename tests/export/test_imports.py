"""Libraries that take seconds are imported only when something is made."""

import json
import subprocess
import sys

import pytest

SLOW = ("torch", "transformers", "peft", "onnxruntime", "tensorrt", "modelopt", "pyarrow")
PROGRAM = f"""
import json, sys
from preference_export.app import app
sys.argv[0] = "preference-export"
app(standalone_mode=False)
sys.stderr.write(json.dumps([name for name in {SLOW!r} if name in sys.modules]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["all", "--help"],
        ["all", "ensemble.toml"],
        ["all", "ensemble.toml", "--dry-run"],
        ["repository", "ensemble.toml"],
        ["sources", "ensemble.toml", "-o", "out"],
    ],
    ids=" ".join,
)
def test_a_run_that_makes_nothing_imports_no_slow_library(project, arguments):
    result, imported = run(*arguments)
    assert imported == []
    assert "written" not in result.stdout or arguments[0] == "sources"


@pytest.mark.slow
def test_an_up_to_date_engine_is_looked_at_without_torch(project):
    pytest.importorskip("tensorrt")
    project.edit("max_tokens = 48", 'max_tokens = 48\nengine = "tensorrt"\nbuild = { optimisation_level = 0 }')
    project.run("all", "--unchecked")
    result, imported = run("all", "ensemble.toml", "--unchecked")
    assert "written" not in result.stdout
    assert imported == ["tensorrt"]


def run(*arguments):
    """The command in a process of its own, and which of the slow libraries it imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result, json.loads(result.stderr)
