"""Looks inside an ONNX file while ONNX Runtime runs it: what is not finite, and how large activations get.

The graph is run in segments, each a part of a decoder layer, which begins with what the segment before it returned; so
this takes the memory of one of them. It knows nothing of limits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from preference_export.artefacts.model import Logits, TokenIds
from preference_export.engine.runtimes import CPU_PROVIDER
from preference_export.gate.onnx_classifier import feeds_of, session_of
from preference_export.graph.packed import HIDDEN

#: Nodes whose outputs are activations that a user can make sense of. Masks and their like are left out.
REPORTED = ("Gemm", "MatMul", "Add", "Mul", "QuantizeLinear")
#: Battles that are scanned, in both orders. Nothing is fused, so that a whole sample would take longer than all else
#: in a comparison; magnitudes differ little between texts, above all those of the first tokens.
SCANNED_BATTLES = 4
_LAYERS = "layers"

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Node:
    """A node by its name, the module it belongs to, and the dtype of its output."""

    name: str
    module: str
    kind: str
    dtype: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Scan:
    """`largest` magnitude of every floating-point output by node; `broken` is the first node, in the order of the
    graph, that returned NaN or infinity, `reached` the largest finite magnitude that it was given.
    """

    largest: dict[Node, float]
    broken: Node | None = None
    reached: float = 0.0

    def by_layer(self) -> dict[str, dict[str, float | str]]:
        """The largest activation of each layer, and where it is; scores that the mask hid are none."""
        layers: dict[str, dict[str, float | str]] = {}
        for node, value in self.largest.items():
            layer = ".".join(_parts(node.module)[0])
            if (
                node.kind in REPORTED
                and value < -HIDDEN
                and (layer not in layers or value > float(layers[layer]["largest"]))
            ):
                layers[layer] = {"largest": value, "at": node.name, "dtype": node.dtype}
        return layers


def scanned(sequences: Sequence[TokenIds], logits: Logits) -> list[TokenIds]:
    """Those of `sequences` (battles, and then the same with their responses exchanged) that are worth a look.

    An engine that overflows returns `logits` that are not finite: then the shortest sequences of these show where.
    Otherwise a few battles in both orders show how large activations get: the longest one, and others of all lengths.
    """
    broken = [ids for ids, row in zip(sequences, logits, strict=True) if not np.isfinite(row).all()]
    if broken:
        return sorted(broken, key=len)[:SCANNED_BATTLES]
    battles = len(sequences) // 2
    by_length = sorted(range(battles), key=lambda index: len(sequences[index]))
    steps = min(SCANNED_BATTLES, battles)
    chosen = [by_length[round((step + 1) * battles / steps) - 1] for step in range(steps)]
    return [sequences[index] for battle in chosen for index in (battle, battle + battles)]


def scan(path: Path, sequences: Sequence[TokenIds], threads: int = 0, provider: str = CPU_PROVIDER) -> Scan:
    """Runs `path` on `sequences` node by node, to the segment that breaks: nothing is fused or reordered.

    The two shortest run packed together, the others alone.
    """
    by_length = sorted(sequences, key=len)
    packs = [by_length[:2], *([ids] for ids in by_length[2:])]
    runs: list[dict[str, Array]] = [dict(feeds_of(pack)) for pack in packs]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    options.add_session_config_entry("session.disable_prepacking", "1")
    model = onnx.load(path, load_external_data=False)
    segments = _segments(model.graph)
    last_use = {name: number for number, nodes in enumerate(segments) for node in nodes for name in node.input}
    largest: dict[Node, float] = {}
    for number, nodes in enumerate(segments):
        segment = _model_of(model, nodes, runs[0])
        session = session_of(segment.SerializeToString(), path, options, provider)
        made = [output.name for output in segment.graph.output]
        found: dict[Node, float] = {}
        for values in runs:
            begun = {tensor.name: values[tensor.name] for tensor in session.get_inputs()}
            values |= zip(made, session.run(made, begun), strict=True)
            for node in _floats(nodes, values):
                found[node] = float(np.maximum(found.get(node, 0.0), _magnitude(values[node.output])))
            for name in [name for name in values if last_use.get(name, -1) <= number]:
                del values[name]
        broken = next((node for node, value in found.items() if not np.isfinite(value)), None)
        largest |= {node: value if np.isfinite(value) else 0.0 for node, value in found.items()}
        if broken is not None:
            given = {node.output: value for node, value in largest.items()}
            return Scan(largest, broken, max((given.get(name, 0.0) for name in broken.inputs), default=0.0))
    return Scan(largest)


def _segments(graph: onnx.GraphProto) -> list[list[onnx.NodeProto]]:
    """The nodes in their order, cut where a part of a decoder layer begins: few values pass from one to the next."""
    segments: list[list[onnx.NodeProto]] = [[]]
    current: list[str] = []
    for node in graph.node:
        _, part = _parts(_module(node))
        if part and part != current:
            segments.append([])
            current = part
        segments[-1].append(node)
    return [nodes for nodes in segments if nodes]


def _model_of(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], values: Mapping[str, Array]) -> onnx.ModelProto:
    """`nodes` as a model that reads what it needs of `values`, and returns what each node returns.

    Left out are quantised values, which nothing outside reads, and weights that were only converted.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    read = dict.fromkeys(name for node in nodes for name in node.input)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), None)
        for name in read
        if name in values
    ]
    outputs = [
        onnx.ValueInfoProto(name=name)
        for node in nodes
        if node.op_type != "QuantizeLinear" and not (node.input and all(name in weights for name in node.input))
        for name in node.output
        if name
    ]
    graph = helper.make_graph(nodes, "segment", inputs, outputs, [weights[name] for name in read if name in weights])
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _floats(nodes: Sequence[onnx.NodeProto], values: Mapping[str, Array]) -> Iterator[Node]:
    """What is known of each floating-point output among `values`."""
    for node in nodes:
        for output in node.output:
            if output in values and values[output].dtype.kind == "f":
                dtype = TensorProto.DataType.Name(helper.np_dtype_to_tensor_dtype(values[output].dtype))
                yield Node(node.name, _module(node), node.op_type, dtype, tuple(node.input), output)


def _magnitude(values: Array) -> float:
    """The largest magnitude; not finite where any value is not. NumPy compares integers, as which floats are ordered
    by their magnitude within each sign, several times faster than floats, and never passes over a NaN.
    """
    bits = 8 * values.itemsize
    positive = int(values.view(f"i{values.itemsize}").max(initial=0))
    negative = int(values.view(f"u{values.itemsize}").max(initial=0)) & (2 ** (bits - 1) - 1)
    return float(np.array(max(positive, negative), f"u{values.itemsize}").view(values.dtype))


def _module(node: onnx.NodeProto) -> str:
    return node.name.partition("/")[0]


def _parts(module: str) -> tuple[list[str], list[str]]:
    """The names of the layer that `module` is in, or of itself; and of the part of the layer, if it is in one."""
    names = module.split(".")
    if _LAYERS not in names:
        return names, []
    end = names.index(_LAYERS) + 2
    return names[:end], names[: end + 1] if len(names) > end else []
