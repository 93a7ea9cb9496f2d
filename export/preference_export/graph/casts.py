"""Writes a precision into a graph that was traced in float32: every cast and every quantising node stands in it.

Embedding, GEMMs and attention's matrix products get the given dtypes; all between them stays float32. It changes
the graph only; `written_specs` says which parameters it then has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from preference_export.checkpoint.files import DECODER_PREFIX, EMBEDDING
from preference_export.graph.precision import Dtypes
from preference_export.graph.quantise import INPUT_SCALE, SMOOTHING, WEIGHT_SCALE, grouped

#: Of activations in dynamic INT8: what stands for 0, and how many steps lie on each side of it. They keep to 7 bits:
#: CPUs without VNNI add two products of an activation and an 8-bit weight in 16 bits, which would saturate.
MIDDLE, STEPS = 64, 63
#: Rows of zeros have a step, too.
SMALLEST_STEP = 1e-30
#: Steps of the second term in one step of the first.
FINE_STEPS = 2 * STEPS
#: Of ONNX Runtime's own operators, which no other runtime has.
RUNTIME_DOMAIN, RUNTIME_OPSET = "com.microsoft", 1


@dataclass(frozen=True)
class ParameterSpec:
    """Shape and dtype of one parameter of the graph."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size in the ONNX file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def written_specs(
    specs: Mapping[str, ParameterSpec], dtypes: Dtypes, quantised: Sequence[str]
) -> dict[str, ParameterSpec]:
    """The parameters under `dtypes`, in the order in which they are written, from those in float32.

    `quantised` are the names of the GEMMs that are. Their scales follow their weights.
    """
    first = {group[0] for group in grouped(quantised)}
    written = {}
    for name, spec in specs.items():
        module, _, part = name.rpartition(".")
        is_gemm = part == "weight" and len(spec.shape) == 2 and name.startswith(DECODER_PREFIX)
        if not is_gemm or module not in quantised:
            written[name] = ParameterSpec(spec.shape, dtypes.dtype if is_gemm else spec.dtype)
            continue
        assert dtypes.quantised is not None
        written[name] = ParameterSpec(spec.shape, dtypes.quantised)
        written[f"{module}.{WEIGHT_SCALE}"] = ParameterSpec(spec.shape[:1], dtypes.dtype)
        if dtypes.calibrated and module in first:
            if dtypes.alpha is not None:
                written[f"{module}.{SMOOTHING}"] = ParameterSpec(spec.shape[1:], torch.float32)
            written[f"{module}.{INPUT_SCALE}"] = ParameterSpec((), dtypes.dtype)
    return written


def write_precision(
    model: ir.Model, dtypes: Dtypes, quantised: Sequence[str], specs: Mapping[str, ParameterSpec]
) -> None:
    """Changes `model`, traced in float32, to `dtypes`. Initializers get the names and dtypes of `specs`."""
    for name, spec in specs.items():
        if name not in model.graph.initializers:
            model.graph.initializers[name] = ir.Value(name=name, shape=ir.Shape(spec.shape))
        model.graph.initializers[name].dtype = from_torch_dtype(spec.dtype)
    if quantised and dtypes.dynamic:
        model.opset_imports[RUNTIME_DOMAIN] = RUNTIME_OPSET
    writer = _Writer(model.graph, dtypes, {name: group[0] for group in grouped(quantised) for name in group})
    for node in list(model.graph):
        weight = node.inputs[1].name if node.op_type == "Gemm" and node.inputs[1] is not None else None
        module = (weight or "").removesuffix(".weight")
        if module in writer.groups and dtypes.dynamic:
            writer.integers(node, module)
        elif module in writer.groups:
            writer.pairs(node, module)
        elif node.op_type == "MatMul" or module.startswith(DECODER_PREFIX):
            writer.casts(node)
        elif node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name == EMBEDDING:
            writer.restored(node)


class _Writer:
    """Inserts nodes before and after those of the traced graph. Equal conversions of one value are made once."""

    def __init__(self, graph: ir.Graph, dtypes: Dtypes, groups: Mapping[str, str]) -> None:
        """`groups` gives the first of the GEMMs that share an input, for each quantised GEMM."""
        self.graph, self.dtypes, self.groups = graph, dtypes, groups
        self.dtype = from_torch_dtype(dtypes.dtype)
        self._made: dict[tuple[str, str], ir.Value] = {}

    def casts(self, node: ir.Node) -> None:
        """`node` computes in its GEMMs' dtype."""
        if self.dtype == ir.DataType.FLOAT:
            return
        for index, value in enumerate(node.inputs):
            assert value is not None
            if not value.is_initializer():
                node.replace_input_with(index, self._cast(node, value))
        self.restored(node)

    def restored(self, node: ir.Node) -> None:
        """What `node` returns is cast back to float32."""
        if self.dtype == ir.DataType.FLOAT:
            return
        (value,) = node.outputs
        uses = list(value.uses())
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT)], name=f"{node.name}/restored")
        cast.outputs[0].name = f"{value.name}_restored"
        self.graph.insert_after(node, cast)
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])

    def pairs(self, node: ir.Node, module: str) -> None:
        """QuantizeLinear/DequantizeLinear before both inputs of `node`; activations are smoothed first."""
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        group = self.groups[module]
        if f"{group}.{SMOOTHING}" in self.graph.initializers:
            x = self._before(node, "Mul", [x, self._parameter(group, SMOOTHING)], group)
        scale = self._parameter(group, INPUT_SCALE)
        assert self.dtypes.quantised is not None
        to = [ir.AttrInt64("output_dtype", from_torch_dtype(self.dtypes.quantised))]
        x = self._before(node, "QuantizeLinear", [self._cast(node, x), scale], group, to)
        x = self._before(node, "DequantizeLinear", [x, scale], group)
        weight_scale = self._parameter(module, WEIGHT_SCALE)
        axis = [ir.AttrInt64("axis", 0)]
        weight = self._before(node, "DequantizeLinear", [weight, weight_scale], module, axis)
        for index, value in enumerate((x, weight)):
            node.replace_input_with(index, value)
        self.restored(node)

    def integers(self, node: ir.Node, module: str) -> None:
        """`node` becomes products of integers. Each row of activations has scales of its own, found at run time, so
        that a token's result depends on no other token, and on nothing that it is packed with.

        ONNX Runtime's operator scales each column as it is computed; in plain ONNX that is two more passes over it.
        """
        x, weight = node.inputs
        assert x is not None
        assert weight is not None
        weight = self._before(node, "Transpose", [weight], module, [ir.AttrInt64s("perm", [1, 0])])
        *terms, scale = self._terms(node, x, self.groups[module])
        products = []
        for term, size in zip(terms, (1.0, 1 / FINE_STEPS), strict=True):
            scales = [self._constant(np.float32(size)), self._parameter(module, WEIGHT_SCALE)]
            inputs = [term, weight, *scales, self._constant(np.uint8(MIDDLE))]
            products.append(self._before(node, "MatMulIntegerToFloat", inputs, module, domain=RUNTIME_DOMAIN))
        steps = self._before(node, "Sum", products, module)  # an Add would count as an activation in a scan
        total = self._before(node, "Mul", [steps, scale], module)
        ir.convenience.replace_all_uses_with(node.outputs[0], total)
        self.graph.remove(node, safe=True)

    def _terms(self, node: ir.Node, x: ir.Value, group: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """`x` `[rows, features]` as a sum of two terms, each in steps of 7 bits, and the size `[rows, 1]` of the first
        one's step, of which the second one's is a fixed part.

        The second term is what rounding left of the first: a huge activation costs its row no precision.
        """
        flat = self._constant(np.array([-1], np.int64))
        largest = self._before(node, "ReduceMax", [self._before(node, "Abs", [x], group), flat], group)
        scale = self._before(node, "Mul", [largest, self._constant(np.float32(1 / STEPS))], group)
        scale = self._before(node, "Add", [scale, self._constant(np.float32(SMALLEST_STEP))], group)
        rows = self._before(node, "Reshape", [scale, flat], group)
        shape = self._before(node, "Shape", [rows], group)
        middle = self._before(node, "Expand", [self._constant(np.uint8(MIDDLE)), shape], group)
        axis = [ir.AttrInt64("axis", 0)]
        first = self._before(node, "QuantizeLinear", [x, rows, middle], group, axis)
        left = self._before(node, "DequantizeLinear", [first, rows, middle], group, axis)
        left = self._before(node, "Sub", [x, left], group)
        rows = self._before(node, "Mul", [rows, self._constant(np.float32(1 / FINE_STEPS))], group)
        second = self._before(node, "QuantizeLinear", [left, rows, middle], group, axis)
        return first, second, scale

    def _constant(self, value: np.generic | np.ndarray[Any, Any]) -> ir.Value:
        name = f"constant_{value.dtype}_{value}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.asarray(value), name=name)
            shape, kind = ir.Shape(value.shape), ir.TensorType(tensor.dtype)
            self.graph.initializers[name] = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        return self.graph.initializers[name]

    def _cast(self, node: ir.Node, value: ir.Value) -> ir.Value:
        if self.dtype == ir.DataType.FLOAT:
            return value
        module = str(node.name).partition("/")[0]
        return self._before(node, "Cast", [value], module, [ir.AttrInt64("to", self.dtype)])

    def _before(
        self,
        node: ir.Node,
        kind: str,
        inputs: Sequence[ir.Value],
        module: str,
        attributes: Sequence[ir.Attr] = (),
        domain: str = "",
    ) -> ir.Value:
        """The output of a new node before `node`; of an existing one, where the same was made of the same value."""
        key = (kind, ",".join(str(value.name) for value in inputs))
        if key not in self._made:
            name = f"{module}/{kind}_p{len(self._made)}"
            made = ir.Node(domain, kind, inputs, attributes, name=name)
            made.outputs[0].name = name
            self.graph.insert_before(node, made)
            self._made[key] = made.outputs[0]
        return self._made[key]

    def _parameter(self, module: str, part: str) -> ir.Value:
        return self.graph.initializers[f"{module}.{part}"]
