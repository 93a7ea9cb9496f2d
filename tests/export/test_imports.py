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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["all", "--help"],
        ["all", "ensemble.toml"],
        ["repository", "ensemble.toml"],
        ["sources", "ensemble.toml", "-o", "out"],
    ],
    ids=" ".join,
)
def test_a_run_that_makes_nothing_imports_no_slow_library(project, arguments):
    command = [sys.executable, "-c", PROGRAM, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stderr) == []
    assert "written" not in result.stdout or arguments[0] == "sources"
