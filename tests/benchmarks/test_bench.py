"""The benchmark's harness, with processes for peers that speak its protocol and no library behind them."""

import json
import os
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PEER = Path(__file__).with_name("steady")
LENGTHS = [5, 7, 9]
LOGITS = {"gemma": [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0], [3.0, 1.0, 0.0]], "llama": [[0.5, 0.0, 0.0]] * 3}

pytestmark = pytest.mark.slow


@pytest.fixture
def harness(monkeypatch):
    """The benchmark's modules, which are scripts beside each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare
    import contestants
    import report

    monkeypatch.setattr(compare, "gemm_rate", lambda: 1e9)
    return compare, contestants, report


@pytest.fixture
def peer(harness, tmp_path):
    """Starts peers that answer the given logits; ends them all."""
    started = []

    def start(name, logits, **options):
        told = tmp_path / f"{name}.json"
        told.write_text(json.dumps(logits))
        checkpoints = {member: tmp_path / member for member in logits}
        ids = {member: [np.arange(count, dtype=np.int32) for count in LENGTHS] for member in logits}
        arguments = (name, tmp_path, PEER, Path(sys.executable), checkpoints, ids, (str(told),))
        started.append(harness[1].Peer(*arguments, **options))
        started[-1].start()
        return started[-1]

    yield start
    for contestant in started:
        contestant.stop()


def test_a_peer_stands_still_until_its_turn(peer):
    waiting = peer("waiting", LOGITS)

    def state():
        return [
            Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            for process in waiting.processes.values()
        ]

    def stopped():
        deadline = time.monotonic() + 60
        while state() != ["T"] * len(LOGITS):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    stopped()
    assert waiting.run().probabilities.shape[0] == len(LOGITS)
    stopped()


def test_peers_are_compared_timed_in_turn_and_reported(harness, peer, tmp_path):
    compare, _, report = harness
    close = {member: [[value + 1e-5 for value in row[:1]] + row[1:] for row in rows] for member, rows in LOGITS.items()}
    pairs = [(peer("first", LOGITS, at_once=True), 1e-3), (peer("second", close), 1e-3)]
    said = []
    found = compare.compare("Three battles", pairs, LENGTHS, 1e6, 2, said.append)
    assert [len(result.seconds) for result in found.results] == [2, 2]
    assert 1e-7 < found.result("second").max_probability_difference < 1e-4
    rounds = [line.strip().split(":")[0] for line in said]
    assert rounds == ["first", "second", *["Three battles", "first", "second"] * 2]

    table = report.table_of(found, "first")
    report.write(tmp_path / "out", {"cores": 2}, [found], [table], {"s against tokens": {"gemma": {1: 2.0, 2: 3.0}}})
    assert "| first | " in report.markdown(table)
    data = json.loads((tmp_path / "out/bench.json").read_text())
    assert data["machine"] == {"cores": 2}
    assert data["comparisons"][0]["results"][1]["versions"].keys() == {"pip"}
    page = (tmp_path / "out/bench.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page


def test_a_peer_with_other_answers_ends_the_benchmark_before_anything_is_timed(harness, peer):
    wrong = LOGITS | {"llama": [[0.0, 0.5, 0.0]] * 3}
    pairs = [(peer("first", LOGITS), 1e-3), (peer("wrong", wrong), 1e-3)]
    said = []
    with pytest.raises(SystemExit, match=r"wrong differs by 0\.18 from first, limit 0\.001"):
        harness[0].compare("Three battles", pairs, LENGTHS, 1e6, 2, said.append)
    assert not any("round" in line for line in said)


def test_one_by_one_each_battle_has_a_time(harness, peer):
    answer = peer("first", LOGITS, at_once=True).run(2, one_by_one=True)
    assert len(answer.each) == 2
    assert answer.probabilities.shape == (2, 2, 3)


def test_a_peer_that_fails_to_load_is_named(harness, peer, tmp_path):
    with pytest.raises(SystemExit, match="broken ended with status 1"):
        peer("broken", {"gemma": None}).run()
    assert "TypeError" in (tmp_path / "contestants.log").read_text()


@pytest.mark.parametrize("name", ["transformers", "vllm", "infinity", "optimum", "engine"])
def test_every_peer_compiles_and_pins_its_environment(name):
    folder = BENCHMARKS / "peers" / name
    compile((folder / "peer.py").read_text(), str(folder), "exec")
    if name in ("vllm", "infinity", "optimum"):
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
        assert "torch==2.13.0" in lines


def test_the_operations_of_a_member_are_those_of_its_linear_layers_and_causal_attention(tmp_path):
    config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 4, "intermediate_size": 16}))
    code = "import sys, pathlib, ensembles; print(ensembles.operations(pathlib.Path(sys.argv[1]), [3]))"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    keys_values, rest = 2 * 8 * 4, 2 * 8 * 8 + 3 * 8 * 16
    pairs_first, pairs_last = 3 * 4 // 2, 3
    attention = 2 * 8 * (pairs_first + pairs_last)
    assert float(done.stdout) == 2 * (2 * 3 * keys_values + (3 + 1) * rest + attention)


def test_time_by_model_and_stage_is_read_from_triton_s_metrics(harness):
    text = (
        "# TYPE nv_inference_queue_duration_us counter\n"
        'nv_inference_queue_duration_us{model="gemma",version="1"} 1500\n'
        'nv_inference_request_success{model="gemma",version="1"} 3\n'
    )
    assert harness[1].COUNTED.findall(text) == [("queue", "gemma", "1500")]


@pytest.mark.parametrize("pad", [0, 499])
def test_infinity_reads_the_ids_that_its_text_spells(tmp_path, monkeypatch, pad):
    monkeypatch.setitem(sys.modules, "infinity_emb", SimpleNamespace(AsyncEmbeddingEngine=None, EngineArgs=None))
    spec = spec_from_file_location("infinity_peer", BENCHMARKS / "peers/infinity/peer.py")
    infinity = module_from_spec(spec)
    spec.loader.exec_module(infinity)
    infinity.write_tokenizer(tmp_path, 500, pad)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = [2, 400, 0, 10, 499, 1]
    assert tokenizer(" ".join(map(str, ids)))["input_ids"] == ids
    assert tokenizer.pad_token_id == pad
