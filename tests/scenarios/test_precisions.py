"""What each precision costs the trained demo ensemble: at the gate, on other battles, and among neighbours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preference_client.scorer import Scorer
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import log_loss, target_of_row
from preference_embedded.launcher import Options, TritonServer
from preference_export.gate.onnx_classifier import OnnxClassifier

HEAD = """
name = "precisions"

[data]
sample = "{demo}/data/validation.csv"
"""
MEMBER = """
[[member]]
name = "{member}_{name}"
base = "{demo}/bases/{member}"
adapter = "{demo}/adapters/{member}"
template = "{member}"
special_tokens = "template"
max_tokens = 192
precision = "{precision}"
{more}
"""
#: Precision and method of quantisation by name.
PRECISIONS = {
    "fp16": ("fp16", ""),
    "static": ("int8", 'quantisation = { method = "static" }'),
    "dynamic": ("int8", 'quantisation = { method = "dynamic" }'),
    "fp8": ("fp8", 'quantisation = { method = "static" }'),
}
#: The most that the log loss may change.
LIMITS = {"fp16": 5e-4, "static": 5e-3, "dynamic": 5e-3, "fp8": 1e-2}
MEMBERS = ("gemma", "llama")


@pytest.fixture(scope="module")
def exported(demo, tmp_path_factory):
    """The demo's members in every precision that ONNX Runtime runs on a CPU, checked, and what the gate measured."""
    folder = tmp_path_factory.mktemp("precisions")
    text = HEAD.format(demo=demo.folder)
    for name, (precision, more) in PRECISIONS.items():
        settings = {"demo": demo.folder, "name": name, "precision": precision, "more": more}
        text += "".join(MEMBER.format(member=member, **settings) for member in MEMBERS)
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
    return folder / "build" / "precisions", {check["name"]: check for check in checks}


@pytest.fixture(scope="module")
def precise_server(exported, tmp_path_factory):
    """A server of all of them as one ensemble."""
    folder, _ = exported
    options = Options(
        folder / "repository",
        python=Path(os.environ["PREFERENCE_SERVER_PYTHON"]),
        log_file=tmp_path_factory.mktemp("server") / "server.log",
    )
    with TritonServer(options) as server:
        yield server


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
    cheaper = np.mean(
        [probabilities(folder / "members" / f"{member}_{precision}", battles) for member in MEMBERS], axis=0
    )
    change = abs(log_loss(cheaper, targets) - log_loss(original, targets))
    assert change < LIMITS[precision], change


def test_a_battle_among_200_others_scores_as_it_does_alone_in_every_precision(precise_server, battles):
    """A scale over all that is run together would change dynamic INT8 by up to 0.08."""
    with (
        Scorer(precise_server.urls["grpc"], max_in_flight=64) as together,
        Scorer(precise_server.urls["grpc"]) as alone,
    ):
        among = list(together.score_many(battles[:200]))
        for number in range(0, 200, 8):
            lone = alone.score(battles[number])
            np.testing.assert_array_equal(lone.member_probabilities, among[number].member_probabilities)
