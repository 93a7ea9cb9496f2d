"""Scenarios run the project's own commands and the real server; these fixtures start them once.

`demo` is what `make demo` leaves behind, `server` a tritonserver on its repository, `reference` the Transformers models
that the repository was made from.
"""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from finished_run import FinishedRun
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from tritonclient.grpc import service_pb2_grpc

from preference_core.battles.battle import battle_from_row
from preference_core.battles.template import template_of
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.loading import load_config
from preference_embedded.guarded import GuardedServer, door_options
from preference_embedded.launcher import Options, TritonServer

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def demo():
    run = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    config = load_config(ROOT / "configs" / "demo.toml")
    return FinishedRun(ROOT / config.folders.root, config, run.stdout + run.stderr)


@pytest.fixture(scope="session")
def server(demo, tmp_path_factory):
    """A real tritonserver on the demo's repository; every scenario that does no harm shares it."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    python = Path(os.environ["PREFERENCE_SERVER_PYTHON"])
    with TritonServer(Options(ROOT / demo.config.folders.repository, python=python, log_file=log)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(demo, tmp_path_factory):
    """The demo's repository behind the door, with a latency goal that a test of overload reaches quickly."""
    options = Options(
        demo.folder / "repository",
        python=Path(os.environ["PREFERENCE_SERVER_PYTHON"]),
        log_file=tmp_path_factory.mktemp("guarded") / "server.log",
    )
    server = GuardedServer(options, replace(door_options(demo.config), latency_goal_s=0.5))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def stub(guarded):
    with grpc.insecure_channel(guarded.urls["grpc"]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


class Reference:
    """The members as Transformers and PEFT load them, one battle at a time, in FP32."""

    def __init__(self, config):
        self.combination = config.combination
        self.members = [self.load(member, len(config.labels)) for member in config.members]

    def load(self, member, labels):
        tokenizer = AutoTokenizer.from_pretrained(ROOT / member.base, padding_side="right", truncation_side="right")
        if template_of(member.template).add_eos:
            tokenizer.add_bos_token = tokenizer.add_eos_token = True
        base = AutoModelForSequenceClassification.from_pretrained(
            ROOT / member.base, num_labels=labels, dtype=torch.float32, attn_implementation="eager"
        )
        model = PeftModel.from_pretrained(base, ROOT / member.adapter).eval()
        return tokenizer, model, member

    @torch.inference_mode()
    def logits(self, battle):
        """Logits `[members, labels]` of one battle."""
        rows = []
        for tokenizer, model, member in self.members:
            text = template_of(member.template).render(battle)
            inputs = tokenizer(text, truncation=True, max_length=member.max_tokens, return_tensors="pt")
            hidden = model.base_model.model.model(**inputs).last_hidden_state
            rows.append(model.base_model.model.score(hidden[0, -1]).numpy())
        return np.stack(rows).astype(np.float64)

    def probabilities(self, battle):
        """The weighted average of the members' probabilities, as the published pipeline computes it."""
        weights = np.array(self.combination.weights) / sum(self.combination.weights)
        return weights @ softmax(self.logits(battle))


@pytest.fixture(scope="session")
def reference(demo):
    return Reference(demo.config)


@pytest.fixture(scope="session")
def battles(demo):
    """The battles of the demo's test file, in order."""
    return [battle_from_row(row) for row in demo.rows("data/test.csv")]
