"""What TensorRT would refuse of an ONNX graph, found out before it is asked: operators, dtypes, quantisation.

TensorRT's own parser has the last word; this list is complete where the parser stops at the first.
"""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

#: Operators that decoders are made of and that TensorRT's ONNX parser takes (10.12 to 11).
ACCEPTED = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "Attention",
        "BatchNormalization",
        "Cast",
        "CastLike",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Cos",
        "CumSum",
        "DequantizeLinear",
        "Div",
        "Einsum",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Eye",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "IsInf",
        "IsNaN",
        "LayerNormalization",
        "Less",
        "LessOrEqual",
        "Log",
        "MatMul",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonZero",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "RMSNormalization",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "Relu",
        "Reshape",
        "RotaryEmbedding",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Slice",
        "Softmax",
        "Softplus",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Swish",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
        "Xor",
    ]
)
REASONS = {"DynamicQuantizeLinear": "scales must be known when the engine is built"}
ACCEPTED_DTYPES = frozenset(
    {
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL),
        *(TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT8E4M3FN),
    }
)
DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def refusals(model: onnx.ModelProto) -> list[str]:
    """One sentence for each node or tensor that TensorRT would refuse, naming it; empty when there is none."""
    return [*_tensors(model.graph), *(sentence for node in model.graph.node for sentence in _node(node, model.graph))]


def _tensors(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output):
        yield from _dtype(f"`{value.name}`", value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        yield from _dtype(f"`{tensor.name}`", tensor.data_type)


def _node(node: onnx.NodeProto, graph: onnx.GraphProto) -> Iterator[str]:
    where = f"`{node.name}` ({node.op_type})"
    if node.domain not in ("", "ai.onnx"):
        yield f"{where}: operators of the domain `{node.domain}` are not supported"
    elif node.op_type not in ACCEPTED:
        yield f"{where}: {REASONS.get(node.op_type, 'the operator is not supported')}"
    for attribute in node.attribute:
        if attribute.name in DTYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT:
            yield from _dtype(where, attribute.i)
        elif attribute.name == "softcap" and attribute.f != 0:
            yield f"{where}: a soft-cap inside Attention is not supported"
        elif attribute.type == onnx.AttributeProto.GRAPH:
            yield f"{where}: it holds a graph of its own"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2]:
        zeros = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == node.input[2]]
        if not zeros or zeros[0].any():
            yield f"{where}: quantisation must be symmetric, its zero point is not a constant 0"


def _dtype(where: str, dtype: int) -> Iterator[str]:
    if dtype not in ACCEPTED_DTYPES:
        yield f"{where}: tensors of type {TensorProto.DataType.Name(dtype)} are not supported"
