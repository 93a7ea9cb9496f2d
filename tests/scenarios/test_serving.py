"""How the server schedules: each battle alone, both engines at once, no stalls; errors that name what is wrong."""

import json
import os
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from preference_client.scorer import Scorer
from preference_core import tensors
from preference_embedded.launcher import Options, TritonServer


def text_input(name, turns, dtype="BYTES", batch=1):
    values = np.array([turns] * batch, dtype=np.object_ if dtype == "BYTES" else np.int32)
    tensor = grpc.InferInput(name, list(values.shape), dtype)
    tensor.set_data_from_numpy(values)
    return tensor


def battle_inputs(**changes):
    turns = {"prompt": [b"Why?"], "response_a": [b"Because."], "response_b": [b"No idea."]} | changes
    return [text_input(name, value) for name, value in turns.items() if value is not None]


@pytest.fixture
def infer(server):
    with grpc.InferenceServerClient(server.urls["grpc"]) as client:
        yield lambda inputs: client.infer(tensors.ENSEMBLE, inputs, client_timeout=30)


def refused(infer, inputs):
    with pytest.raises(InferenceServerException) as caught:
        infer(inputs)
    assert "INVALID_ARGUMENT" in caught.value.status()
    return caught.value.message()


def executions(client, model):
    statistics = client.get_inference_statistics(model, as_json=True)["model_stats"][0]
    return int(statistics.get("inference_count", 0)), int(statistics.get("execution_count", 0))


def test_no_battle_shares_an_execution_of_an_engine_on_a_cpu(server, battles):
    with grpc.InferenceServerClient(server.urls["grpc"]) as client:
        before = {name: executions(client, name) for name in ("gemma", "llama")}
        with Scorer(server.urls["grpc"], max_in_flight=64) as scorer:
            answers = list(scorer.score_many(battles[:200]))
        assert len({tuple(answer.token_counts) for answer in answers}) > 10
        for name, (inferences, runs) in before.items():
            deadline = time.monotonic() + 10  # Statistics follow the answers.
            while (after := executions(client, name))[0] - inferences < 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert (after[0] - inferences, after[1] - runs) == (200, 200)


def test_battles_in_both_orders_do_not_stall(server, battles):
    """Where a queue has a batcher, one in four of them waited for half a second that two steps share a model."""
    waits = []
    with Scorer(server.urls["grpc"], symmetric=True) as scorer:
        for battle in battles[:150]:
            began = time.perf_counter()
            scorer.score(battle)
            waits.append(time.perf_counter() - began)
    assert sum(wait > 0.2 for wait in waits) < 5, sorted(waits)[-5:]  # A busy machine may hold up a few.


def test_both_engines_of_one_battle_run_at_the_same_time(demo, battles, tmp_path):
    trace = tmp_path / "trace.json"
    settings = ("triton,file=" + str(trace), "level=TIMESTAMPS", "rate=1", "triton,log-frequency=1")
    options = Options(
        demo.folder / "repository",
        python=Path(os.environ["PREFERENCE_SERVER_PYTHON"]),
        log_file=tmp_path / "server.log",
        extra_arguments=tuple(f"--trace-config={setting}" for setting in settings),
    )
    with (
        TritonServer(options) as server,
        Scorer(server.urls["grpc"], max_in_flight=1) as scorer,
    ):
        longest = sorted(battles, key=lambda battle: -sum(map(len, battle.response_a + battle.response_b)))[:20]
        list(scorer.score_many(longest))
    spans = {}
    for path in tmp_path.glob("trace.json*"):
        for entry in json.loads(path.read_text()):
            spans.setdefault(entry["id"], {}).update(entry)
            for stamp in entry.get("timestamps", ()):
                spans[entry["id"]][stamp["name"]] = stamp["ns"]
    overlaps = 0
    for span in spans.values():
        if span.get("model_name") != "gemma":
            continue
        sibling = next(
            s for s in spans.values() if s.get("parent_id") == span["parent_id"] and s.get("model_name") == "llama"
        )
        start = max(span["COMPUTE_START"], sibling["COMPUTE_START"])
        overlaps += start < min(span["COMPUTE_END"], sibling["COMPUTE_END"])
    assert overlaps >= 15


@pytest.mark.parametrize("missing", ["prompt", "response_a", "response_b"])
def test_a_missing_tensor_is_named(infer, missing):
    assert f"`{missing}` is missing" in refused(infer, battle_inputs(**{missing: None}))


def test_a_wrong_dtype_names_the_tensor_and_what_is_expected(infer):
    inputs = [*battle_inputs(response_a=None), text_input("response_a", [1], dtype="INT32")]
    message = refused(infer, inputs)
    assert "response_a" in message
    assert "BYTES" in message


def test_more_than_one_battle_per_request_is_refused(infer):
    names = [spec.name for spec in tensors.BATTLE_INPUTS]
    said = refused(infer, [text_input(name, [b"x"], batch=2) for name in names])
    assert "batch-size must be <= 1 for 'preference_ensemble'" in said


def test_turn_counts_that_differ_are_refused_with_both_counts(infer):
    message = refused(infer, battle_inputs(response_b=[b"one", b"two"]))
    assert "`response_b` has 2 turns, `prompt` has 1" in message


@pytest.mark.parametrize(
    ("prompt", "a", "b", "message"),
    [
        ([b'["Hi"]'], [b'["a"]'], [b'["b"]'], "`prompt` is a list of turns in one text"),
        ([b"['Hi' None]"], [b"['a' 'b']"], [b""], "`prompt` is a list of turns in one text"),
        ([b"Hi", b""], [b"a", b""], [b"b", b""], "`prompt` and both responses are empty in turn 2 of 2"),
    ],
    ids=["JSON", "NumPy", "padding"],
)
def test_a_cell_of_a_file_and_turns_that_only_fill_up_are_refused(infer, prompt, a, b, message):
    assert message in refused(infer, battle_inputs(prompt=prompt, response_a=a, response_b=b))


@pytest.mark.parametrize(
    ("turn", "message"), [(b"\xff\xfe", "is not UTF-8: byte 0xff at 0"), (b"a\0b", "a NUL character at character 1")]
)
def test_text_that_cannot_be_read_is_refused_naming_its_field(infer, turn, message):
    answer = refused(infer, battle_inputs(response_a=[turn]))
    assert "`response_a`" in answer
    assert message in answer


@pytest.mark.parametrize("weights", [[-1, 1], [0, 0], [np.nan, 1], [np.inf, 1]])
def test_unusable_weights_are_refused(infer, weights):
    tensor = grpc.InferInput("weights", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([weights], dtype=np.float32))
    assert "weights are" in refused(infer, [*battle_inputs(), tensor])


def test_weights_of_the_wrong_length_are_refused(infer):
    tensor = grpc.InferInput("weights", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))
    assert "weights" in refused(infer, [*battle_inputs(), tensor])


def test_a_bad_request_does_not_disturb_its_neighbours(server, infer, battles):
    with Scorer(server.urls["grpc"]) as scorer:
        expected = scorer.score(battles[0]).probabilities
        for _ in range(20):
            refused(infer, battle_inputs(response_a=[b"\xff"]))
            assert np.abs(scorer.score(battles[0]).probabilities - expected).max() <= 1e-6


def test_text_beyond_the_limit_is_cut_and_reported(server):
    text = "Some words of a very long answer. " * 300_000
    with Scorer(server.urls["grpc"], timeout_s=60) as scorer:
        answer = scorer.score({"prompt": "Why?", "response_a": "Because.", "response_b": text})
    assert np.isfinite(answer.probabilities).all()
    assert answer.dropped_tokens[:, 2].min() > 100_000
    assert answer.dropped_tokens[:, 0].max() == 0


def test_empty_and_missing_text_has_a_score_that_is_always_the_same(server):
    rows = [{"prompt": p, "response_a": p, "response_b": p} for p in ("", "[]", "[null]", '[""]')]
    with Scorer(server.urls["grpc"]) as scorer:
        answers = np.stack([scorer.score(row).probabilities for row in rows * 2])
    assert np.abs(answers - answers[0]).max() <= 1e-6
    assert answers.sum(axis=1) == pytest.approx(1, abs=1e-6)


def metrics(server):
    """Values of the server's metrics by name and labels."""
    with urllib.request.urlopen(f"http://{server.urls['metrics']}/metrics", timeout=10) as response:
        lines = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", response.read().decode(), re.MULTILINE)
    return {(name, labels): float(value) for name, labels, value in lines}


def test_tokens_shortened_special_and_refused_battles_are_counted(server, demo, infer):
    def counted():
        return {key: value for key, value in metrics(server).items() if key[0].startswith("preference_")}

    before = counted()
    with Scorer(server.urls["grpc"]) as scorer:
        short, long = ({"prompt": text, "response_a": "Yes.", "response_b": "No."} for text in ("Why?", "Why? " * 5000))
        predictions = [scorer.score(row) for row in (short, long, short | {"response_a": "No."})]
    refused(infer, battle_inputs(response_b=[b"\xff"]))
    grown = {key: value - before[key] for key, value in counted().items() if value != before[key]}
    members = list(demo.config.members)
    expected = {
        ("preference_battles", 'case="ordinary"'): 2,
        ("preference_battles", 'case="identical_responses"'): 1,
        ("preference_refused_battles", 'field="response_b"'): 1,
    }
    for index, name in enumerate(member.name for member in members):
        expected |= {
            ("preference_tokens", f'member="{name}"'): sum(each.token_counts[index] for each in predictions),
            ("preference_dropped_tokens", f'member="{name}"'): sum(
                sum(each.dropped_tokens[index]) for each in predictions
            ),
            ("preference_shortened_battles", f'member="{name}"'): 1,
        }
    assert grown == expected


def test_the_server_counts_what_the_autoscaler_the_alerts_and_the_dashboard_ask_for(server):
    """Every metric in their queries is one that this server exposes; those of GPUs need one."""
    root = Path(__file__).parents[2]
    monitoring = root / "docker" / "monitoring"
    files = [root / "deploy" / "kubernetes" / "prometheus-adapter.yaml", monitoring / "alerts.yml"]
    files += sorted((monitoring / "grafana" / "dashboards").glob("*.json"))
    exposed = {name for name, _ in metrics(server)}
    asked_for = {
        name for file in files for name in re.findall(r"\b(?:nv|preference)_[a-z_]+(?=[\[{])", file.read_text())
    }
    asked_for |= {name for file in files for name in re.findall(r"\bnv_\w+", file.read_text())}
    assert len(asked_for) >= 15
    assert {name for name in asked_for - exposed if not name.startswith("nv_gpu_")} == set()
