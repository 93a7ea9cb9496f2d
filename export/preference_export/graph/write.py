"""Writes a packed classifier as ONNX: the graph from a model without data, then its weights, one at a time.

The same inputs give the same bytes, and no path of this machine gets into them. It does not know where
weights come from.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes import common
from onnx_ir.tensor_adapters import from_torch_dtype
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules.common import (
    collapse_slice_rule,
    materialize_reshape_shape_rule,
    squeeze_reshape_1d_rule,
    unsqueeze_unsqueeze_rule,
)

from preference_core import tensors
from preference_core.progress import BytesDone
from preference_export.artefacts.names import DATA_FILE, MODEL_FILE
from preference_export.checkpoint.architecture import Architecture
from preference_export.graph.block_size import BLOCK
from preference_export.graph.blocks import write_blocks
from preference_export.graph.casts import ParameterSpec, write_precision, written_specs
from preference_export.graph.packed import COMPUTED, Gemm, PackedClassifier
from preference_export.graph.precision import Dtypes
from preference_export.graph.quantise import QuantisedWeights, Ranges, Weights, quantised_gemms

#: The first in which QuantizeLinear says what it quantises to, without a zero point.
OPSET = 21
#: Every tensor starts at a page boundary, so that runtimes can map the file.
ALIGNMENT = 4096

#: Sizes the graph is traced with. All differ and are above 1: torch takes a size of 1 for a constant.
TRACED_TOKENS, TRACED_SEQUENCES, TRACED_LONGEST = 11, 3, 5
_RULES = (
    collapse_slice_rule,
    materialize_reshape_shape_rule,
    squeeze_reshape_1d_rule,
    unsqueeze_unsqueeze_rule,
)
_SCOPES = "pkg.torch.onnx.name_scopes"
_NOISY_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnx_ir.passes.common.initializer_deduplication")

SINGLE_PRECISION = Dtypes("float32")


def classifier_without_data(
    architecture: Architecture, labels: int, dtype: torch.dtype = torch.float32
) -> PackedClassifier:
    """The packed classifier on torch's `meta` device: names, shapes and dtypes only, for models of any size."""
    with torch.device("meta"):
        return PackedClassifier(architecture, labels, dtype).eval().requires_grad_(False)


def parameter_specs(model: PackedClassifier) -> dict[str, ParameterSpec]:
    """The parameters in the order in which they are written."""
    return {name: ParameterSpec(tuple(p.shape), p.dtype) for name, p in model.named_parameters()}


def checkpoint_shapes(model: PackedClassifier) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that are read from a checkpoint."""
    return {name: spec.shape for name, spec in parameter_specs(model).items() if name not in COMPUTED}


def linear_modules(model: PackedClassifier) -> list[str]:
    """Names of the modules that a LoRA adapter may have matrices for."""
    return [name for name, module in model.named_modules() if isinstance(module, Gemm)]


def export_onnx(
    folder: Path,
    architecture: Architecture,
    weights: Weights,
    labels: int,
    dtypes: Dtypes = SINGLE_PRECISION,
    report: BytesDone = lambda written: None,
    ranges: Ranges | None = None,
    graph: ir.Model | None = None,
    max_tokens: int = BLOCK,
) -> dict[str, str]:
    """Writes `model.onnx` and `model.onnx.data` into `folder`; returns their SHA-256 by name.

    Inputs and output are those of `preference_core.tensors`: rank 1 and packed. `report` is told the bytes written.
    `ranges` are those of activations, for dtypes that need calibration. `graph` is what `graph_of` gave for the same
    architecture, if that was traced before; it is changed. Attention is divided for
    sequences of up to `max_tokens` tokens, which decides its speed and not its result.
    """
    model = classifier_without_data(architecture, labels)
    names = quantised_gemms(linear_modules(model), dtypes, ranges)
    specs = written_specs(parameter_specs(model), dtypes, names)
    if graph is None:
        graph = graph_of(model, labels)
    write_precision(graph, dtypes, names, specs)
    write_blocks(graph, max_tokens, architecture.heads // architecture.key_value_heads, architecture.windows)
    if names:
        weights = QuantisedWeights(weights, names, dtypes, ranges or {})
    offsets, data_hash = _write_data(folder / DATA_FILE, _blocks(architecture, weights, specs), report)
    for name, spec in specs.items():
        graph.graph.initializers[name].const_value = ir.ExternalTensor(
            DATA_FILE,
            offset=offsets[name],
            length=spec.bytes,
            dtype=from_torch_dtype(spec.dtype),
            shape=ir.Shape(spec.shape),
            name=name,
            base_dir=folder,
        )
    content = ir.to_proto(graph).SerializeToString(deterministic=True)
    (folder / MODEL_FILE).write_bytes(content)
    return {MODEL_FILE: hashlib.sha256(content).hexdigest(), DATA_FILE: data_hash}


def graph_of(model: PackedClassifier, labels: int) -> ir.Model:
    """The optimised ONNX graph; initializers bear the parameters' names and have no values yet."""
    sequences = torch.export.Dim("sequences")
    dynamic_shapes = ({0: torch.export.Dim("tokens")}, {0: sequences}, {0: torch.export.Dim("longest")})
    sizes = (TRACED_TOKENS, TRACED_SEQUENCES, TRACED_LONGEST)
    output = tensors.logits(labels).name
    with _quiet():
        program = torch.onnx.export(
            model,
            tuple(torch.zeros(size, dtype=torch.int32, device="meta") for size in sizes),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=[tensor.name for tensor in tensors.ENGINE_INPUTS],
            output_names=[output],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        graph = program.model
        for name in parameter_specs(model):
            graph.graph.initializers[name].const_value = None
        _optimise(graph)
    _make_portable(graph)
    graph.graph.outputs[0].shape = ir.Shape(["sequences", labels])
    return graph


def _optimise(model: ir.Model) -> None:
    """Does what `onnxscript.optimizer.optimize_ir` does, with those of its rules that change these graphs.

    Another one of its rules, which looks for pairs of slices, takes time that grows with the square of the layers.
    """
    common.InlinePass()(model)
    for _ in range(2):  # a rule makes constants
        onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        RewritePass(_RULES)(model)
        common.RemoveUnusedNodesPass()(model)
    ir.passes.Sequential(
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    )(model)


def _make_portable(model: ir.Model) -> None:
    """Names nodes after the modules they come from, and drops what else torch noted, paths of this machine included."""
    for number, node in enumerate(model.graph):
        scopes = node.metadata_props.get(_SCOPES, "")
        modules = [scope.strip("'\"[] ") for scope in scopes.split(",")]
        module = next((scope for scope in reversed(modules[:-1]) if scope and not scope.startswith("_")), "pack")
        node.name = f"{module}/{node.op_type}_{number}"
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None
                value.type = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for holder in (model, model.graph):
        holder.metadata_props.clear()
        holder.doc_string = None


def _write_data(path: Path, blocks: Iterator[tuple[str, memoryview]], report: BytesDone) -> tuple[dict[str, int], str]:
    """Streams blocks of named tensors into `path`; returns the offset of each tensor and the SHA-256 of the file.

    One block is hashed while it is written and the next one is computed: hashing takes as long as both.
    """
    offsets: dict[str, int] = {}
    digest = hashlib.sha256()
    position = 0
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as hasher:
        hashed: Future[None] | None = None
        for name, block in blocks:
            gap = b"" if name in offsets else bytes(-position % ALIGNMENT)
            offsets.setdefault(name, position + len(gap))
            for piece in (gap, block):
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(digest.update, piece)
                file.write(piece)
                position += len(piece)
            report(len(block))
    return offsets, digest.hexdigest()


def _blocks(
    architecture: Architecture, weights: Weights, specs: Mapping[str, ParameterSpec]
) -> Iterator[tuple[str, memoryview]]:
    """Every parameter in order, as one or more blocks of its bytes (little-endian, row-major)."""
    for name, spec in specs.items():
        if name in COMPUTED:
            blocks: Iterable[torch.Tensor] = [torch.tensor(getattr(architecture, COMPUTED[name]), dtype=spec.dtype)]
        else:
            blocks = weights.blocks(name, spec.dtype)
        for block in blocks:
            yield name, block.contiguous().view(-1).view(torch.uint8).numpy().data


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch and onnx_ir report about their own insides, and nothing else."""

    def unimportant(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "torchvision is not installed" not in message and "Skipped deduplication of initializer" not in message

    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    for logger in loggers:
        logger.addFilter(unimportant)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(unimportant)
