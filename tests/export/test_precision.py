"""Every precision stands in the graph as promised, for every architecture, and stays close to the original."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from architectures import ARCHITECTURES

from preference_core.ensemble.settings import Build, Classifier, Config, ParityLimits, Quantisation
from preference_core.errors import ConfigError, UserError
from preference_export.artefacts.names import MODEL_FILE
from preference_export.engine.build import build_engine
from preference_export.engine.profiles import profiles_of
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import exceeded, limits_of, measure
from preference_export.gate.scan import scan
from preference_export.graph.precision import Dtypes, check_supported, dtypes_of
from preference_export.graph.quantise import QuantisedWeights, grouped, quantised_gemms, spread

RECIPES = {
    "fp32": Dtypes("float32"),
    "fp16": Dtypes("float16"),
    "bf16": Dtypes("bfloat16"),
    "int8": Dtypes("float16", "int8", alpha=0.5),
    "fp8": Dtypes("float16", "float8_e4m3fn"),
    "int8 with bf16": Dtypes("bfloat16", "int8", alpha=0.5),
}
DYNAMIC = Dtypes("float32", "int8", dynamic=True)
ONNX = onnx.TensorProto
GEMM_DTYPES = {
    "fp32": ONNX.FLOAT,
    "fp16": ONNX.FLOAT16,
    "bf16": ONNX.BFLOAT16,
    "int8": ONNX.INT8,
    "fp8": ONNX.FLOAT8E4M3FN,
}


def graph_in(folder):
    return onnx.load(folder / MODEL_FILE, load_external_data=False).graph


@pytest.mark.parametrize("precision", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_precision_is_built_by_tensorrt(tracer, tmp_path, architecture, precision):
    pytest.importorskip("tensorrt")
    folder = tracer.export(architecture, precision, RECIPES[precision])
    build = Build(workspace_mebibytes=256, optimisation_level=0)
    cache = tracer.folder / "timing.cache"
    build_engine(folder / MODEL_FILE, tmp_path / "plan", profiles_of(64, 2), build, cache, lambda *told: None)
    assert (tmp_path / "plan").stat().st_size > 10_000


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lower_precisions_stay_within_their_default_limits(tracer, sequences, architecture, precision):
    folder = tracer.export(architecture, precision, RECIPES[precision])
    original = tracer.of(architecture).original_logits
    parity = measure(OnnxClassifier(folder / MODEL_FILE, threads=1), original, sequences)
    assert parity.max_logit_difference > 1e-6, "nothing was rounded"
    assert exceeded(parity, limits_of(precision, ParityLimits())) == []


def test_dynamic_quantisation_stays_within_the_limits_of_int8(tracer, sequences):
    folder = tracer.export("llama", "dynamic", DYNAMIC)
    parity = measure(OnnxClassifier(folder / MODEL_FILE, 1), tracer.of("llama").original_logits, sequences)
    assert parity.max_logit_difference > 1e-4
    assert exceeded(parity, limits_of("int8", ParityLimits())) == []
    kinds = [node.op_type for node in graph_in(folder).node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("Gemm")) == (28, 1), "two products for each projection"
    assert kinds.count("QuantizeLinear") == 18, "projections that read the same share them"


def test_a_scan_reports_activations_and_not_steps_of_dynamic_quantisation(tracer, sequences):
    single, dynamic = (
        scan(tracer.export("llama", name, dtypes) / MODEL_FILE, sequences[:2], threads=1).by_layer()
        for name, dtypes in (("fp32", RECIPES["fp32"]), ("dynamic", DYNAMIC))
    )
    assert dynamic.keys() == single.keys()
    for layer, activation in single.items():
        assert dynamic[layer]["largest"] == pytest.approx(activation["largest"], rel=0.1), layer


def test_dynamic_quantisation_scores_a_sequence_alike_in_any_company(tracer, sequences):
    folder = tracer.export("llama", "dynamic", DYNAMIC)
    classifier = OnnxClassifier(folder / MODEL_FILE, 1)
    together = classifier.logits(sequences)
    for number, sequence in enumerate(sequences):
        np.testing.assert_allclose(classifier.logits([sequence])[0], together[number], atol=2e-5)


class WithOutliers:
    """Weights of which some features of the MLP are `factor` times as large between its projections, and no others.

    Real pretrained models have such features, above all for their first tokens.
    """

    def __init__(self, weights, factor, features=2):
        self.weights, self.factor, self.features = weights, factor, features

    def blocks(self, name, dtype):
        for block in self.weights.blocks(name, torch.float32):
            block = block.clone()
            if name.endswith("mlp.up_proj.weight"):
                block[: self.features] *= self.factor
            elif name.endswith("mlp.down_proj.weight"):
                block[:, : self.features] /= self.factor
            yield block.to(dtype)


def test_a_few_huge_activations_do_not_spoil_dynamic_quantisation(tracer, make, sequences):
    """In 8 bits with one scale for a tensor, or for a row, the other features would round to a few steps."""
    traced = tracer.of("llama")
    weights = WithOutliers(make.weights(traced.base, traced.adapter), 30.0)

    folder = tracer.export("llama", "outliers", DYNAMIC, weights)
    logits = OnnxClassifier(folder / MODEL_FILE, 1).logits(sequences)
    assert np.abs(logits - traced.original_logits).mean() < 0.01, "0.006; with one term of 8 bits it was 0.020"


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantised_graphs_hold_pairs_around_each_projection_and_nothing_else(tracer, precision):
    graph = graph_in(tracer.export("gemma2", precision, RECIPES[precision]))
    made_by = {output: node for node in graph.node for output in node.output}
    gemms = [node for node in graph.node if node.op_type == "Gemm" and node.input[1] != "score.weight"]
    assert len(gemms) == 14
    for gemm in gemms:
        activation, weight = (made_by[name] for name in gemm.input)
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert made_by[activation.input[0]].op_type == "QuantizeLinear"
        assert weight.input[0].endswith("_proj.weight")
    odd = {node.op_type for node in graph.node if "uantize" in node.op_type or "Integer" in node.op_type}
    assert odd == {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("precision", GEMM_DTYPES)
def test_weights_have_the_dtype_of_the_precision_and_norms_and_head_stay_single(tracer, precision):
    graph = graph_in(tracer.export("gemma2", precision, RECIPES[precision]))
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == GEMM_DTYPES[precision]
    single = ("score.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight")
    assert {kinds[name] for name in single} == {ONNX.FLOAT}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_only_matrix_products_and_the_embedding_leave_single_precision(tracer, precision):
    graph = onnx.shape_inference.infer_shapes(
        onnx.load(tracer.export("gemma2", precision, RECIPES[precision]) / MODEL_FILE)
    ).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    narrow = {node.op_type for node in graph.node if kinds.get(node.output[0]) == GEMM_DTYPES[precision]}
    assert narrow == {"Cast", "Gemm", "MatMul", "Gather", "Slice", "Concat"}, "the latter two of blocks of attention"


def test_kept_layers_stay_in_the_higher_precision(tracer, sequences):
    dtypes = Dtypes("float16", "int8", keep=("layers.0.*", "*.o_proj"), alpha=0.5)
    folder = tracer.export("llama", "kept", dtypes)
    kinds = {tensor.name: tensor.data_type for tensor in graph_in(folder).initializer}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == ONNX.FLOAT16
    assert kinds["model.layers.1.self_attn.o_proj.weight"] == ONNX.FLOAT16
    assert kinds["model.layers.1.self_attn.q_proj.weight"] == ONNX.INT8
    original = tracer.of("llama").original_logits
    kept = measure(OnnxClassifier(folder / MODEL_FILE, 1), original, sequences)
    all_folder = tracer.export("llama", "int8", RECIPES["int8"])
    assert (
        kept.mean_logit_difference
        < measure(OnnxClassifier(all_folder / MODEL_FILE, 1), original, sequences).mean_logit_difference
    )


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"`\*\.query`, which no GEMM matches"):
        quantised_gemms(["model.layers.0.self_attn.q_proj"], Dtypes("float16", "int8", keep=("*.query",)))


def test_gemms_that_read_activations_with_a_few_huge_features_stay_in_the_higher_precision(tracer):
    traced = tracer.of("llama")
    names = sorted(traced.ranges)
    dtypes = Dtypes("float16", "int8", alpha=0.5, keep_above=4.0)
    assert all(spread(traced.ranges[name], 0.5) < 4 for name in names)
    huge = "model.layers.1.mlp.down_proj"
    ranges = {**traced.ranges, huge: traced.ranges[huge].clone()}
    ranges[huge][3] = 20 * ranges[huge].median()  # the square root of 20 is above 4, of 12 it is not
    assert quantised_gemms(names, dtypes, ranges) == [name for name in names if name != huge]
    assert quantised_gemms(names, replace(dtypes, keep_above=5.0), ranges) == names
    ranges[huge][3] = 12 * ranges[huge].median()
    assert quantised_gemms(names, dtypes, ranges) == names
    assert huge not in quantised_gemms(names, replace(dtypes, alpha=None), ranges)


def test_a_spread_counts_the_features_that_are_used_and_what_smoothing_leaves_of_them():
    ranges = torch.tensor([0.0, 0.0, 1.0, 1.0, 2.0, 1.0, 64.0])
    assert (spread(ranges, 0.0), spread(ranges, 0.5), spread(torch.zeros(3), 0.5)) == (64.0, 8.0, 1.0)


class SomeWeights:
    """Weights with one column that is far larger than the others."""

    def __init__(self):
        self.weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    def blocks(self, name, dtype):
        yield from (self.weight[:5].to(dtype), self.weight[5:].to(dtype))


def quantised_weight(dtypes, ranges):
    weights, name = SomeWeights(), "model.layers.0.mlp.down_proj"
    made = QuantisedWeights(weights, [name], dtypes, {name: ranges})
    parts = {
        part: torch.cat(
            [block.reshape(-1) if block.ndim == 0 else block for block in made.blocks(f"{name}.{part}", torch.float32)]
        )
        for part in ("weight", "weight_scale", *(("smoothing",) if dtypes.alpha else ()), "input_scale")
    }
    return weights.weight, parts


def test_restored_weights_are_within_half_a_step_of_their_channel():
    weight, parts = quantised_weight(Dtypes("float32", "int8"), torch.ones(16))
    restored = parts["weight"].float() * parts["weight_scale"][:, None]
    assert parts["weight"].dtype == torch.int8
    assert ((restored - weight).abs() <= parts["weight_scale"][:, None] / 2 + 1e-7).all()
    torch.testing.assert_close(parts["weight_scale"], weight.abs().amax(1) / 127)


def test_smoothing_follows_its_formula_and_cancels_out():
    ranges = torch.linspace(0.0, 50.0, 16)
    weight, parts = quantised_weight(Dtypes("float32", "int8", alpha=0.75), ranges)
    expected = ranges[1:] ** 0.75 / weight.abs().amax(0)[1:] ** 0.25
    torch.testing.assert_close(1 / parts["smoothing"][1:], expected)
    assert parts["smoothing"][0] == 1, "a feature that is always 0 is left alone"
    restored = parts["weight"].float() * parts["weight_scale"][:, None] * parts["smoothing"]
    assert ((restored - weight).abs() <= (parts["weight_scale"][:, None] * parts["smoothing"]) / 2 + 1e-6).all()
    torch.testing.assert_close(parts["input_scale"], (ranges * parts["smoothing"]).max()[None] / 127)


def test_projections_that_read_the_same_share_their_scale():
    names = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkvo"]
    assert grouped(names) == [names[:3], names[3:]]


def member(**settings):
    return Classifier(name="gemma", base="base", template="gemma", max_tokens=64, **settings)


@pytest.mark.parametrize(
    ("settings", "dynamic", "dtype"),
    [
        ({"engine": "onnxruntime"}, True, torch.float32),
        ({"engine": "onnxruntime", "gpus": (0,)}, False, torch.float16),
        ({"engine": "tensorrt"}, False, torch.float16),
        ({"engine": "onnxruntime", "quantisation": Quantisation(method="static")}, False, torch.float16),
        ({"engine": "tensorrt", "quantisation": Quantisation(precision="bf16")}, False, torch.bfloat16),
    ],
)
def test_what_int8_means_depends_on_who_serves_it(settings, dynamic, dtype):
    dtypes = dtypes_of(member(precision="int8", **settings))
    assert (dtypes.dynamic, dtypes.dtype, dtypes.calibrated) == (dynamic, dtype, not dynamic)


def test_bf16_is_refused_for_onnx_runtime_on_a_cpu_only():
    check_supported(Config(name="a", members=(member(precision="bf16", engine="tensorrt"),)))
    check_supported(Config(name="a", members=(member(precision="bf16", gpus=(0,)),)))
    with pytest.raises(UserError, match="does not run bf16 on a CPU"):
        check_supported(Config(name="a", members=(member(precision="bf16"),)))


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "fp16", "quantisation": Quantisation()},
        {"precision": "fp8", "quantisation": Quantisation(method="dynamic")},
        {"precision": "int8", "engine": "tensorrt", "quantisation": Quantisation(method="dynamic")},
        {"precision": "int8", "quantisation": Quantisation(keep_above=2.0)},
        {"precision": "int8", "quantisation": Quantisation(alpha=0.5)},
        {"precision": "fp8", "engine": "tensorrt", "quantisation": Quantisation(keep_above=2.0)},
    ],
)
def test_quantisation_that_means_nothing_is_refused(settings):
    with pytest.raises(ConfigError, match="`quantisation"):
        member(**settings)
