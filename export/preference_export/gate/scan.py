"""Looks inside an ONNX file while ONNX Runtime runs it: what is not finite, and how large activations get.

Every node's output is reduced to two numbers inside the graph, right after the node, so that this takes little more
memory than the graph alone. It knows nothing of limits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from preference_export.artefacts.model import Logits, TokenIds
from preference_export.engine.runtimes import CPU_PROVIDER
from preference_export.gate.onnx_classifier import feeds_of, session_of
from preference_export.gate.parity import packs
from preference_export.graph.packed import HIDDEN

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
#: Nodes whose outputs are activations that a user can make sense of. Masks and their like are left out.
REPORTED = ("Gemm", "MatMul", "Add", "Mul", "QuantizeLinear")
#: Battles that are scanned, in both orders. Node by node a model of 9 B parameters takes minutes on a large CPU for
#: these, and hours for a whole sample; magnitudes differ little between texts, above all those of the first tokens.
SCANNED_BATTLES = 4
_PROBE = "probe"
_LAYERS = "layers"


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
            layer = _layer(node.module)
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
    """Runs `path` on `sequences`, packed as the gate packs them, node by node: nothing is fused or reordered."""
    model = onnx.load(path, load_external_data=False)
    nodes = _probe_outputs(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Nodes run in the order of the file: by default all probes come last, and every activation is kept until then.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = session_of(model.SerializeToString(), path, options, provider)
    largest = np.zeros(len(nodes))
    finite = np.ones(len(nodes), dtype=bool)
    for pack in packs(sequences):
        values = session.run([f"{_PROBE}_all"], feeds_of([sequences[index] for index in pack]))[0].reshape(-1, 2)
        finite &= np.isfinite(values[:, 1])
        largest = np.fmax(largest, np.where(np.isfinite(values[:, 0]), values[:, 0], 0.0))
    by_node = dict(zip(nodes, (float(value) for value in largest), strict=True))
    if finite.all():
        return Scan(by_node)
    broken = nodes[int(np.argmin(finite))]
    made = {node.output: value for node, value in by_node.items()}
    return Scan(by_node, broken, max((made.get(name, 0.0) for name in broken.inputs), default=0.0))


def _probe_outputs(model: onnx.ModelProto) -> list[Node]:
    """Adds one output `[2 * nodes]` to the graph: for each floating-point node, max |x| and a sum that is 0 or NaN."""
    dtypes = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    dtypes |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    nodes = [
        Node(
            name=node.name,
            module=node.name.partition("/")[0],
            kind=node.op_type,
            dtype=TensorProto.DataType.Name(dtypes[output]),
            inputs=tuple(node.input),
            output=output,
        )
        for node in model.graph.node
        for output in node.output
        if dtypes.get(output) in FLOATS
    ]
    for name, value in (("zero", np.zeros((), np.float32)), ("one", np.array([1], np.int64))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{_PROBE}_{name}"))
    probes: dict[str, list[onnx.NodeProto]] = {}
    parts = []
    for number, node in enumerate(nodes):
        made = [f"{_PROBE}_{number}_{step}" for step in ("float", "abs", "max", "none", "sum", "max1", "sum1")]
        as_float, magnitude, largest, nothing, total, *shaped = made
        probes[node.output] = [
            helper.make_node("Cast", [node.output], [as_float], to=TensorProto.FLOAT),
            helper.make_node("Abs", [as_float], [magnitude]),
            helper.make_node("ReduceMax", [magnitude], [largest], keepdims=0),
            helper.make_node("Mul", [as_float, f"{_PROBE}_zero"], [nothing]),
            helper.make_node("ReduceSum", [nothing], [total], keepdims=0),
            helper.make_node("Reshape", [largest, f"{_PROBE}_one"], [shaped[0]]),
            helper.make_node("Reshape", [total, f"{_PROBE}_one"], [shaped[1]]),
        ]
        parts.extend(shaped)
    original = list(model.graph.node)
    del model.graph.node[:]
    for made_by in original:
        model.graph.node.append(made_by)
        for output in made_by.output:
            model.graph.node.extend(probes.get(output, ()))
    model.graph.node.append(helper.make_node("Concat", parts, [f"{_PROBE}_all"], axis=0))
    model.graph.output.append(helper.make_tensor_value_info(f"{_PROBE}_all", TensorProto.FLOAT, [2 * len(nodes)]))
    return nodes


def _layer(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: parts.index(_LAYERS) + 2]) if _LAYERS in parts else module
