"""Attention in blocks computes what undivided attention does, at every edge of a block, and reads no later key."""

import numpy as np
import onnx
import onnxruntime
import pytest

from preference_export.artefacts.names import MODEL_FILE
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.scan import scan
from preference_export.graph.blocks import NO_END, block_bounds, block_size
from preference_export.graph.precision import Dtypes
from preference_export.original.whole import Reference

pytestmark = pytest.mark.slow

SINGLE = Dtypes("float32")
BLOCK, TOKENS = 16, 64  # those of `tracer`
EDGES = (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, TOKENS - 1, TOKENS)


@pytest.mark.parametrize("architecture", ["gemma2", "llama", "qwen2"])
def test_lengths_at_every_edge_of_a_block_have_the_originals_logits(tracer, make, architecture):
    traced = tracer.of(architecture)
    random = np.random.default_rng(5)
    sequences = [random.integers(3, make.vocabulary, length).astype(np.int32) for length in EDGES]
    expected = Reference(traced.base, [traced.adapter], make.labels).logits(sequences)
    classifier = OnnxClassifier(tracer.export(architecture, "fp32", SINGLE) / MODEL_FILE, threads=1)
    alone = np.concatenate([classifier.logits([ids]) for ids in sequences])
    assert np.abs(alone - expected).max() <= 1e-4
    for packed in (sequences, sequences[::-1], sequences[:3]):
        order = [next(i for i, ids in enumerate(sequences) if ids is one) for one in packed]
        assert np.abs(classifier.logits(packed) - expected[order]).max() <= 1e-4


def test_a_sequence_beyond_the_last_block_has_the_originals_logits(tracer, make):
    traced = tracer.of("llama")
    ids = np.random.default_rng(6).integers(3, make.vocabulary, TOKENS + 9).astype(np.int32)
    expected = Reference(traced.base, [traced.adapter], make.labels).logits([ids])
    classifier = OnnxClassifier(tracer.export("llama", "fp32", SINGLE) / MODEL_FILE, threads=1)
    assert np.abs(classifier.logits([ids]) - expected).max() <= 1e-4


def test_blocks_read_no_key_behind_their_end(tracer, make):
    folder = tracer.export("llama", "fp32", SINGLE)
    model = onnx.load(folder / MODEL_FILE)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    layers = 2
    assert len(softmaxes) == (layers - 1) * TOKENS // BLOCK + 1
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in softmaxes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.full(40, 5, np.int32)
    feed = {"input_ids": ids, "cu_seqlens": np.array([0, 40], np.int32), "max_seqlen": np.zeros(40, np.int32)}
    shapes = [values.shape for values in session.run(None, feed)[1:]]
    share = 3
    assert [shape[-2:] for shape in shapes[:-1]] == [(16 * share, 16), (16 * share, 32), (8 * share, 40), (0, 40)]


@pytest.mark.parametrize(
    ("max_tokens", "size", "count"),
    [(16, 128, 1), (128, 128, 1), (129, 128, 2), (1024, 128, 8), (1025, 256, 5), (8192, 1024, 8)],
)
def test_blocks_cover_every_query_once_and_are_at_most_eight(max_tokens, size, count):
    bounds = block_bounds(max_tokens)
    assert (block_size(max_tokens), len(bounds)) == (size, count)
    assert [start for start, _ in bounds] == [size * number for number in range(count)]
    assert [end for _, end in bounds] == [size * number for number in range(1, count)] + [NO_END]


def test_the_scan_passes_over_blocks_behind_a_short_text(tracer):
    found = scan(tracer.export("gemma2", "fp32", SINGLE) / MODEL_FILE, [np.arange(3, 12, dtype=np.int32)], threads=1)
    assert found.broken is None
    assert all(layer["largest"] < 1e6 for layer in found.by_layer().values()), "the mask is no activation"
    products = [value for node, value in found.largest.items() if node.kind == "MatMul"]
    assert products.count(0.0) == 2 * (TOKENS // BLOCK - 1), "two products of each empty block"
