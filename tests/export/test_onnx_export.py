"""The exported graph computes what Hugging Face's classifier computes, and its files are as promised."""

import itertools

import numpy as np
import onnx
import onnx_ir
import onnxscript.optimizer
import pytest
from architectures import ARCHITECTURES

from preference_core import tensors
from preference_export.artefacts.names import DATA_FILE, MODEL_FILE
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import measure
from preference_export.graph import write
from preference_export.graph.packed import COMPUTED
from preference_export.graph.write import ALIGNMENT
from preference_export.original.whole import Reference

pytestmark = pytest.mark.slow

LIMIT = 1e-4


@pytest.fixture(scope="session")
def original_logits(exported, make, sequences):
    return Reference(exported.base, [exported.adapter], make.labels).logits(sequences)


@pytest.fixture(scope="session")
def classifier(exported):
    return OnnxClassifier(exported.folder / MODEL_FILE, threads=1)


@pytest.fixture(scope="session")
def graph(exported):
    return onnx.load(exported.folder / MODEL_FILE, load_external_data=False).graph


def test_each_sequence_alone_has_the_originals_logits(classifier, original_logits, sequences):
    for ids, expected in zip(sequences, original_logits, strict=True):
        logits = classifier.logits([ids])
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= LIMIT


def test_sequences_packed_together_have_the_originals_logits_in_every_order(classifier, original_logits, sequences):
    assert np.abs(original_logits).max() > 0.05, "logits near zero would prove nothing"
    for order in itertools.permutations(range(len(sequences))):
        logits = classifier.logits([sequences[index] for index in order])
        assert np.abs(logits - original_logits[list(order)]).max() <= LIMIT


def test_neighbours_in_a_pack_do_not_change_a_sequence(classifier, sequences):
    first, second, third, fourth = sequences
    with_some = classifier.logits([first, second])[0]
    with_others = classifier.logits([first, third, fourth, third])[0]
    assert np.abs(with_some - with_others).max() <= 1e-5


def test_half_precision_stays_close_to_the_original(exported_in_half_precision, make, sequences):
    half = exported_in_half_precision
    reference = Reference(half.base, [half.adapter], make.labels).logits(sequences)
    parity = measure(OnnxClassifier(half.folder / MODEL_FILE, threads=1), reference, sequences)
    assert 0 < parity.max_logit_difference <= 5e-2


def test_half_precision_keeps_norms_and_the_head_in_single(exported_in_half_precision):
    graph = onnx.load(exported_in_half_precision.folder / MODEL_FILE, load_external_data=False).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.external_data}
    halves = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert "model.layers.0.self_attn.q_proj.weight" in halves
    assert "model.embed_tokens.weight" in halves
    assert not halves & {"score.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_traced_graph_is_optimised_as_by_onnxscripts_whole_optimiser(tracer, make, monkeypatch, architecture):
    traced = tracer.of(architecture)
    monkeypatch.setattr(write, "_optimise", onnxscript.optimizer.optimize_ir)
    whole = write.graph_of(write.classifier_without_data(tracer.description(traced.base), make.labels), make.labels)
    ours, theirs = (onnx_ir.to_proto(model).graph for model in (traced.graph, whole))
    assert ours.node == theirs.node
    assert ours.input == theirs.input
    assert ours.output == theirs.output


def test_inputs_and_output_are_those_of_the_contract_and_packed(graph, make):
    def described(values):
        return [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values]

    inputs = (tensors.INPUT_IDS, tensors.LENGTHS, tensors.MAX_SEQLEN)
    assert described(graph.input) == [(tensor.name, onnx.TensorProto.INT32, 1) for tensor in inputs]
    assert described(graph.output) == [("logits", onnx.TensorProto.FLOAT, 2)]
    assert graph.output[0].type.tensor_type.shape.dim[1].dim_value == make.labels


def test_weights_bear_the_checkpoints_names_and_are_aligned_external_data(graph, exported, make):
    external = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    assert external.keys() - COMPUTED.keys() == set(make.weights(exported.base, exported.adapter).shapes)
    for tensor in external.values():
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == DATA_FILE
        assert int(entries["offset"]) % ALIGNMENT == 0


def test_nodes_are_named_after_their_modules_and_no_path_of_this_machine_is_kept(graph, exported):
    assert any(node.name.startswith("model.layers.1.mlp.down_proj/Gemm_") for node in graph.node)
    content = (exported.folder / MODEL_FILE).read_bytes()
    for trace in (b"/preference_export", b"site-packages", b".py", b"stack_trace"):
        assert trace not in content


def test_every_projection_is_one_gemm_on_the_weight_as_it_is_stored(graph):
    projections = [node for node in graph.node if node.op_type == "Gemm"]
    assert len(projections) == 2 * 7 + 1
    assert all(attribute.i == 1 for n in projections for attribute in n.attribute if attribute.name == "transB")
