"""Attention in blocks computes what undivided attention does, at every edge of blocks and windows, and reads no key
that it may not see.
"""

import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import ARCHITECTURES

from preference_export.artefacts.names import MODEL_FILE
from preference_export.checkpoint.architecture import architecture_of, hugging_face_config
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.scan import scan
from preference_export.graph.block_size import block_size
from preference_export.graph.blocks import NO_END, block_bounds
from preference_export.graph.precision import Dtypes
from preference_export.graph.write import export_onnx
from preference_export.original.whole import Reference

pytestmark = pytest.mark.slow

SINGLE = Dtypes("float32")
BLOCK, TOKENS, WINDOW = 16, 64, 20  # those of `tracer`
EDGES = sorted(
    {1, TOKENS - 1, TOKENS} | {edge + step for edge in (BLOCK, 2 * BLOCK, WINDOW, 2 * WINDOW) for step in (-1, 0, 1)}
)


def assert_has_the_originals_logits(folder, base, adapter, sequences):
    """Alone, packed, and packed in other orders."""
    expected = Reference(base, [adapter], 3).logits(sequences)
    classifier = OnnxClassifier(folder / MODEL_FILE, threads=1)
    alone = np.concatenate([classifier.logits([ids]) for ids in sequences])
    assert np.abs(alone - expected).max() <= 1e-4
    for order in (range(len(sequences)), range(len(sequences))[::-1], np.random.default_rng(1).permutation(3)):
        packed = classifier.logits([sequences[index] for index in order])
        assert np.abs(packed - expected[list(order)]).max() <= 1e-4


def sequences_of(lengths, vocabulary):
    random = np.random.default_rng(5)
    return [random.integers(3, vocabulary, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lengths_at_every_edge_of_a_block_or_a_window_have_the_originals_logits(tracer, make, architecture):
    traced, folder = tracer.of(architecture), tracer.export(architecture, "fp32", SINGLE)
    assert_has_the_originals_logits(folder, traced.base, traced.adapter, sequences_of(EDGES, make.vocabulary))


@pytest.mark.parametrize(
    ("architecture", "window", "max_tokens"),
    [("gemma3_text", 512, 1100), ("gemma2", 512, 1100), ("qwen2", 100, 300), ("mistral", 300, 700), ("qwen3", 1, 300)],
)
def test_windows_in_blocks_of_full_size_have_the_originals_logits(make, tmp_path, architecture, window, max_tokens):
    changes = {"sliding_window": window, "num_hidden_layers": 3}
    if architecture.startswith("gemma"):
        changes["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
    elif architecture.startswith("qwen"):
        changes |= {"use_sliding_window": True, "max_window_layers": 1}
        changes["layer_types"] = ["full_attention", "sliding_attention", "sliding_attention"]
    base = make.base(tmp_path / "base", architecture, config=make.config(architecture, **changes))
    adapter = make.adapter(tmp_path / "adapter", base, target_modules="all-linear")
    description = architecture_of(hugging_face_config(base)).for_length(max_tokens)
    assert window in description.windows
    export_onnx(tmp_path, description, make.weights(base, adapter), make.labels, max_tokens=max_tokens)
    lengths = {1, max_tokens} | {edge + step for edge in (128, 256, window, 2 * window) for step in (-1, 0, 1)}
    assert_has_the_originals_logits(
        tmp_path, base, adapter, sequences_of(sorted(lengths - {0, *range(max_tokens + 1, 2000)}), make.vocabulary)
    )


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
    feed = {"input_ids": ids, "lengths": np.array([40], np.int32), "max_seqlen": np.zeros(40, np.int32)}
    shapes = [values.shape for values in session.run(None, feed)[1:]]
    share = 3
    assert [shape[-2:] for shape in shapes[:-1]] == [(16 * share, 16), (16 * share, 32), (8 * share, 40), (0, 40)]


def test_blocks_read_no_key_before_their_window(tracer, make):
    model = onnx.load(tracer.export("mistral", "fp32", SINGLE) / MODEL_FILE)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in softmaxes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for tokens, columns in ((64, [16, 32, 35, 35]), (40, [16, 32, 27, 11]), (9, [9, 9, 0, 0])):
        feed = {
            "input_ids": np.full(tokens, 5, np.int32),
            "lengths": np.array([tokens], np.int32),
            "max_seqlen": np.zeros(tokens, np.int32),
        }
        shapes = [values.shape for values in session.run(None, feed)[1:]]
        assert [shape[-1] for shape in shapes[:-1]] == columns


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
