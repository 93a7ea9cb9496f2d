"""What each precision costs the trained demo ensemble: at the gate, and on battles nothing was calibrated on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import log_loss, target_of_row
from preference_export.gate.onnx_classifier import OnnxClassifier

HEAD = """
name = "precisions"

[data]
sample = "{demo}/data/validation.csv"
"""
MEMBER = """
[[member]]
name = "{member}_{precision}"
base = "{demo}/bases/{member}"
adapter = "{demo}/adapters/{member}"
template = "{member}"
special_tokens = "template"
max_tokens = 192
precision = "{precision}"
{more}
"""
STATIC = 'quantisation = { method = "static" }'
#: The most that the log loss may change.
LIMITS = {"fp16": 5e-4, "int8": 5e-3, "fp8": 1e-2}
MEMBERS = ("gemma", "llama")


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    """The demo's members in every precision that ONNX Runtime runs on a CPU, checked, and what the gate measured."""
    folder = tmp_path_factory.mktemp("precisions")
    text = HEAD.format(demo=demo.folder)
    for precision in LIMITS:
        more = "" if precision == "fp16" else STATIC
        text += "".join(MEMBER.format(demo=demo.folder, member=m, precision=precision, more=more) for m in MEMBERS)
    (folder / "precisions.toml").write_text(text, encoding="utf-8")
    run = subprocess.run(
        [
            Path(sys.executable).with_name("preference-export"),
            "all",
            "precisions.toml",
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    checks = [result for result in json.loads(run.stdout)["results"] if result["stage"] == "check"]
    return folder / "build" / "precisions" / "members", {check["name"]: check for check in checks}


def probabilities(folder, battles):
    """Probabilities `[battles, labels]` of an exported member, each battle alone."""
    engine, encoder = OnnxClassifier(folder / "model.onnx"), encoder_from_folder(folder)
    encoded = encoder.encode_batch(battles)
    return softmax(np.concatenate([engine.logits([tokens.ids]) for tokens in encoded]).astype(np.float64))


@pytest.mark.parametrize("precision", LIMITS)
def test_the_gate_finds_every_member_within_the_limit(exported, precision):
    _, checks = exported
    for member in MEMBERS:
        found = checks[f"{member}_{precision}"]
        assert 0 < found["log_loss_change"] < LIMITS[precision]
        assert found["max_logit_difference"] > 1e-5, "this is not another precision"


@pytest.mark.parametrize("precision", LIMITS)
def test_the_ensemble_keeps_its_log_loss_on_battles_that_nothing_was_calibrated_on(exported, demo, battles, precision):
    folder, _ = exported
    targets = [target_of_row(row, demo.config.labels) for row in demo.rows("data/test.csv")]
    original = np.mean([probabilities(demo.folder / "members" / member, battles) for member in MEMBERS], axis=0)
    cheaper = np.mean([probabilities(folder / f"{member}_{precision}", battles) for member in MEMBERS], axis=0)
    change = abs(log_loss(cheaper, targets) - log_loss(original, targets))
    assert change < LIMITS[precision], change
