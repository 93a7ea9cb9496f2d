"""The gate looks inside: it names the layer that overflows, and reports how large activations are."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from preference_core.artefacts.manifest import read_manifest
from preference_core.ensemble.settings import ParityLimits
from preference_core.errors import ParityError
from preference_export.artefacts.names import MODEL_FILE
from preference_export.gate.onnx_classifier import OnnxClassifier, feeds_of, session_of
from preference_export.gate.parity import compare, exceeded, limits_of
from preference_export.gate.scan import scan, scanned
from preference_export.graph.packed import COMPUTED, PackedClassifier
from preference_export.graph.precision import Dtypes

UP, GATE, DOWN = (f"model.layers.0.mlp.{name}_proj" for name in ("up", "gate", "down"))


class Planted:
    """Weights of which some projections are scaled up and the down projection is scaled down: more is only between."""

    def __init__(self, weights, **factors):
        self.weights = weights
        factors = factors or {"up": 4e4}
        self.factors = {f"model.layers.0.mlp.{name}_proj.weight": factor for name, factor in factors.items()}
        self.factors[f"{DOWN}.weight"] = 1 / np.prod(list(factors.values()))

    def blocks(self, name, dtype):
        for block in self.weights.blocks(name, torch.float32):
            yield (block * self.factors.get(name, 1.0)).to(dtype)


@pytest.fixture
def planted(tracer, make):
    traced = tracer.of("llama")
    return Planted(make.weights(traced.base, traced.adapter))


def test_an_overflow_in_half_precision_is_found_and_its_layer_named(tracer, planted, sequences):
    found = scan(tracer.export("llama", "planted", Dtypes("float16"), planted) / MODEL_FILE, sequences, 1)
    assert found.broken is not None
    assert (found.broken.module, found.broken.kind, found.broken.dtype) == (UP, "Gemm", "FLOAT16")


def test_a_product_that_overflows_where_it_is_read_is_found_with_its_magnitude(tracer, make, sequences):
    traced = tracer.of("llama")
    weights = Planted(make.weights(traced.base, traced.adapter), up=600, gate=600)
    found = scan(tracer.export("llama", "product", Dtypes("float16"), weights) / MODEL_FILE, sequences, 1)
    assert found.broken is not None
    assert (found.broken.module, found.broken.kind, found.broken.dtype) == (DOWN, "Cast", "FLOAT16")
    assert found.reached > 65504


def test_bfloat16_and_single_precision_pass_the_same_model(tracer, planted, make, sequences):
    single = tracer.export("llama", "planted single", Dtypes("float32"), planted)
    assert scan(single / MODEL_FILE, sequences, 1).broken is None
    traced = tracer.of("llama")
    model = PackedClassifier(tracer.description(traced.base), make.labels, torch.bfloat16).requires_grad_(False)
    inverse = torch.tensor(tracer.description(traced.base).inverse_frequencies)
    for name, parameter in model.named_parameters():
        parameter.data = inverse if name in COMPUTED else torch.cat(list(planted.blocks(name, parameter.dtype)))
    with torch.inference_mode():
        logits = model(*(torch.from_numpy(values) for values in feeds_of(sequences).values())).numpy()
    assert exceeded(compare(logits, traced.original_logits), limits_of("bf16", ParityLimits())) == []


def test_ranges_are_those_of_the_layers(tracer, sequences):
    traced = tracer.of("llama")
    found = scan(tracer.export("llama", "fp32", Dtypes("float32")) / MODEL_FILE, sequences, 1)
    assert found.broken is None
    layers = found.by_layer()
    assert {"model.layers.0", "model.layers.1", "score"} <= layers.keys()
    read_by_down = float(traced.ranges[DOWN].max())
    gated = [
        value for node, value in found.largest.items() if node.module == "model.layers.0.mlp" and node.kind == "Mul"
    ]
    assert any(np.isclose(value, read_by_down, rtol=1e-4) for value in gated)


def test_a_few_battles_of_all_lengths_are_scanned_in_both_orders():
    lengths = np.random.default_rng(3).permutation(np.arange(1, 65))
    sequences = [np.zeros(length, np.int32) for length in (*lengths, *(lengths + 100))]
    chosen = [len(ids) for ids in scanned(sequences, np.zeros((128, 3)))]
    assert chosen == [16, 116, 32, 132, 48, 148, 64, 164]
    assert len(scanned(sequences[:1] * 2, np.zeros((2, 3)))) == 2


def test_sequences_whose_logits_are_not_finite_are_scanned_first():
    sequences = [np.zeros(length, np.int32) for length in range(1, 129)]
    logits = np.zeros((128, 3))
    logits[7, 1], logits[90, 2] = np.nan, np.inf
    assert [len(ids) for ids in scanned(sequences, logits)] == [8, 91]


class PlantedForOneToken(Planted):
    """The same, but every other token is so small that the norm's epsilon keeps it small; no attention mixes them."""

    def __init__(self, weights, token):
        super().__init__(weights)
        self.token = token
        self.factors["model.layers.0.self_attn.o_proj.weight"] = 0.0
        self.factors["model.layers.0.post_attention_layernorm.weight"] = 20.0

    def blocks(self, name, dtype):
        for block in super().blocks(name, torch.float32):
            if name == "model.embed_tokens.weight":
                kept = block[self.token].clone()
                block = block * 1e-6
                block[self.token] = kept
            yield block.to(dtype)


def test_the_layer_is_found_that_overflows_for_one_text_of_many(tracer, make):
    """An engine returns NaN for it. ONNX Runtime on a CPU does not: its optimiser leaves roundings out."""
    traced = tracer.of("llama")
    weights = PlantedForOneToken(make.weights(traced.base, traced.adapter), 7)
    path = tracer.export("llama", "one token", Dtypes("float16"), weights) / MODEL_FILE
    random = np.random.default_rng(0)
    sequences = [random.integers(8, make.vocabulary, length).astype(np.int32) for length in range(3, 43)]
    sequences[5][2] = 7
    logits = np.zeros((40, make.labels))
    assert scan(path, scanned(sequences, logits), 1).broken is None
    logits[5] = np.nan
    found = scan(path, scanned(sequences, logits), 1).broken
    assert found is not None
    assert found.module == UP


def test_the_graph_runs_in_parts_of_layers_that_return_what_the_whole_returns(tracer, sequences, monkeypatch):
    opened = []

    def noted(model, *others):
        opened.append({node.name.partition("/")[0] for node in onnx.ModelProto.FromString(model).graph.node})
        return session_of(model, *others)

    monkeypatch.setattr("preference_export.gate.scan.session_of", noted)
    path = tracer.export("gemma2", "fp32", Dtypes("float32")) / MODEL_FILE
    found = scan(path, sequences[:1], 1)
    parts = [{name for name in names if ".self_attn" in name or ".mlp" in name} for names in opened]
    assert sum(map(bool, parts)) == 4, "two layers, of two parts with projections"
    logits = OnnxClassifier(path, 1).logits(sequences[:1])
    (last,) = (value for node, value in found.largest.items() if node.module == "score")
    assert last == pytest.approx(float(np.abs(logits).max()), rel=1e-5)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from preference_export.gate.scan import scan
peak = lambda: 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
path, sequences = Path(sys.argv[1]), [np.full(800, 5, np.int32)] * 4
scan(path, [ids[:8] for ids in sequences], 1)
before = peak()
scan(path, sequences, 1)
print(peak() - before)
"""


@pytest.mark.slow
def test_activations_are_let_go_of_once_they_were_looked_at(finished_project):
    """Attention scores are the largest of them: eight and more tensors of that size would be kept to the end."""
    scores = 4 * 4 * 800**2 * 4  # sequences x heads x tokens^2, in bytes
    path = finished_project.folder / "build" / "tiny" / "members" / "gemma" / MODEL_FILE
    ran = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, check=True, text=True)
    assert int(ran.stdout) < 6 * scores


@pytest.mark.slow
def test_the_gate_refuses_a_member_that_overflows_and_names_the_layer(project):
    path = project.folder / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] *= 4e4
    save_file(tensors, path, metadata={"format": "pt"})
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp16"')
    with pytest.raises(
        ParityError, match=r"`model\.layers\.0\.mlp\.\w+` is the first to return values that are not finite"
    ):
        project.run("all")
    record = read_manifest(project.folder / "build" / "tiny" / "members" / "gemma").parity
    assert "is the first to return values that are not finite" in record["broken"][0]


def test_the_report_holds_swap_consistency_and_activations(finished_project):
    parity = read_manifest(finished_project.folder / "build" / "tiny" / "members" / "gemma").parity
    assert parity["swap"]["same_decision"] == parity["original_swap"]["same_decision"]
    assert parity["swap"]["max_difference"] == pytest.approx(parity["original_swap"]["max_difference"], abs=1e-4)
    assert parity["scanned_sequences"] == 8
    assert parity["activations"]["model.layers.1"]["largest"] > 0
