"""INT8 on a CPU keeps its word on real pretrained weights, which have huge activations that random ones lack.

`PREFERENCE_REAL_CONFIG` names the configuration of a trained ensemble, `configs/real.toml` after `make real`. What this
test exports goes below `build/`, under a name of its own.
"""

import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from preference_core.artefacts.manifest import read_manifest
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import Classifier
from preference_export.app import app

REAL_CONFIG = "PREFERENCE_REAL_CONFIG"


@pytest.mark.slow
def test_int8_changes_the_log_loss_of_a_trained_classifier_by_less_than_its_limit(tmp_path):
    if REAL_CONFIG not in os.environ:
        pytest.skip(f"{REAL_CONFIG} names no configuration")
    path = Path(os.environ[REAL_CONFIG])
    text = re.sub("^(precision|parity|include) = .*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = text.replace("\nmax_tokens", '\nprecision = "int8"\nmax_tokens')
    (tmp_path / "int8.toml").write_text(
        re.sub('^name = "(.*)"', r'name = "\1-test"', text, count=1, flags=re.MULTILINE)
    )
    config = load_config(tmp_path / "int8.toml")
    for member in config.members:
        if isinstance(member, Classifier):
            for stage in ("onnx", "check"):
                options = [stage, str(tmp_path / "int8.toml"), "--member", member.name]
                CliRunner().invoke(app, options, catch_exceptions=False)
            parity = read_manifest(config.folders.exported(member.name)).parity
            assert "broken" not in parity
            assert 0 < parity["log_loss_change"] < 0.005
