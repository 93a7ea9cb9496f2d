"""INT8 on a CPU keeps its word on real pretrained weights, which have huge activations that random ones lack.

`PREFERENCE_REAL_CONFIG` names the configuration of a trained ensemble, whose paths start at its folder. What this test
exports goes below `build/` there, under a name of its own.
"""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from preference_core.artefacts.manifest import read_manifest
from preference_core.ensemble.loading import load_config
from preference_export.app import app

REAL_CONFIG = "PREFERENCE_REAL_CONFIG"


@pytest.mark.slow
def test_int8_changes_the_log_loss_of_a_trained_classifier_by_less_than_its_limit(tmp_path, monkeypatch):
    if REAL_CONFIG not in os.environ:
        pytest.skip(f"{REAL_CONFIG} names no configuration")
    path = Path(os.environ[REAL_CONFIG]).resolve()
    monkeypatch.chdir(path.parent)
    name = load_config(path).name
    text = path.read_text().replace(f'name = "{name}"', f'name = "{name}-int8"', 1)
    (tmp_path / "int8.toml").write_text(text.replace("\nmax_tokens", '\nprecision = "int8"\nmax_tokens'))
    config = load_config(tmp_path / "int8.toml")
    for stage in ("onnx", "check"):
        CliRunner().invoke(app, [stage, str(tmp_path / "int8.toml")], catch_exceptions=False)
    for member in config.members:
        parity = read_manifest(config.folders.exported(member.name)).parity
        assert "broken" not in parity
        assert 0 < parity["log_loss_change"] < 0.005
