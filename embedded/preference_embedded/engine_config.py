"""What a model configuration asks of an ONNX engine, read from Triton's JSON form and held against the model file.

What loads here loads in Triton's C++ onnxruntime backend, and a valid request gets the same answer; what the two do
with other requests is in `batching`. It runs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime

from preference_core.errors import ConfigError
from preference_core.tensors import LABELS_PARAMETER, MEMBERS_PARAMETER
from preference_embedded.batching import KINDS, BatchInput

Warn = Callable[[str], None]

#: Triton's data types that arrive as NumPy arrays, and ONNX Runtime's names for them.
ONNX_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
}
BATCH_INPUT_TYPES = {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32}

_LEVEL = onnxruntime.GraphOptimizationLevel
#: `optimization { graph { level } }` of the C++ backend; any other level means the default.
OPTIMISATION_LEVELS = {-1: _LEVEL.ORT_ENABLE_BASIC, 1: _LEVEL.ORT_ENABLE_EXTENDED, 2: _LEVEL.ORT_DISABLE_ALL}
PARAMETERS = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena")
#: Parameters that say nothing to this backend, as it should be: they are for Python models and clients.
NOT_FOR_ENGINES = (MEMBERS_PARAMETER, LABELS_PARAMETER)
UNSUPPORTED_SECTIONS = ("batch_output", "sequence_batching")
UNSUPPORTED_KEYS = ("reshape", "is_shape_tensor", "optional")


class OnnxValue(Protocol):
    """An input or output of a loaded model, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@dataclass(frozen=True)
class TensorConfig:
    """One input or output of a configuration; `dims` leave out the batch, -1 is a length that varies."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    ragged: bool


@dataclass(frozen=True)
class EngineConfig:
    """A model configuration as far as it concerns the engine; `max_batch_size` 0 means that the model has no batch."""

    file_name: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    batch_inputs: tuple[BatchInput, ...]
    parameters: Mapping[str, str]
    optimisation_level: int

    @property
    def ragged(self) -> frozenset[str]:
        """Names of the ragged inputs."""
        return frozenset(tensor.name for tensor in self.inputs if tensor.ragged)

    def session_options(self, warn: Warn) -> onnxruntime.SessionOptions:
        """Options as the C++ backend sets them: with ONNX Runtime's arena unless `enable_mem_arena` is 0."""
        for key in self.parameters.keys() - {*PARAMETERS, *NOT_FOR_ENGINES}:
            warn(f"parameter `{key}` has no meaning for ONNX Runtime on a CPU")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._number("intra_op_thread_count")
        options.inter_op_num_threads = self._number("inter_op_thread_count")
        options.execution_mode = (
            onnxruntime.ExecutionMode.ORT_PARALLEL
            if self._number("execution_mode", most=1)
            else onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        )
        options.enable_cpu_mem_arena = bool(self._number("enable_mem_arena", most=1, default="1"))
        options.graph_optimization_level = OPTIMISATION_LEVELS.get(self.optimisation_level, _LEVEL.ORT_ENABLE_ALL)
        return options

    def check_model(self, inputs: Sequence[OnnxValue], outputs: Sequence[OnnxValue]) -> None:
        """Raises `ConfigError` naming the first tensor on which configuration and model file disagree."""
        given = {value.name: value for value in inputs}
        wanted = [tensor.name for tensor in self.inputs] + [made.target for made in self.batch_inputs]
        if sorted(given) != sorted(wanted):
            raise ConfigError(f"the configuration feeds the inputs {sorted(wanted)}, the model has {sorted(given)}")
        made = {value.name: value for value in outputs}
        for tensor in self.outputs:
            if tensor.name not in made:
                raise ConfigError(f"output `{tensor.name}` is not in the model, which has {sorted(made)}")
        for tensor in self.inputs:
            self._compare("input", tensor, given[tensor.name], exact=False)
        for tensor in self.outputs:
            self._compare("output", tensor, made[tensor.name], exact=True)

    def _compare(self, kind: Literal["input", "output"], tensor: TensorConfig, value: OnnxValue, exact: bool) -> None:
        expected = ONNX_TYPES.get(tensor.data_type)
        if expected is None:
            raise ConfigError(f"{kind} `{tensor.name}` is {tensor.data_type}, which the CPU runtime does not support")
        if value.type != expected:
            raise ConfigError(f"{kind} `{tensor.name}` is {tensor.data_type}, the model has {value.type}")
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        batch = [-1] if self.max_batch_size else []
        configured = [-1] if tensor.ragged else [*batch, *tensor.dims]
        agree = len(shape) == len(configured) and all(
            found == wanted or (not exact and not tensor.ragged and found == -1)
            for found, wanted in zip(shape, configured, strict=True)
        )
        if not agree or shape[: len(batch)] != batch:
            raise ConfigError(f"{kind} `{tensor.name}` has shape {shape} in the model, expected {configured}")

    def _number(self, key: str, most: int | None = None, default: str = "0") -> int:
        value = self.parameters.get(key, default)
        if not value.isascii() or not value.isdigit() or (most is not None and int(value) > most):
            expected = "a whole number" if most is None else f"0 to {most}"
            raise ConfigError(f"parameter `{key}` is `{value}`, expected {expected}")
        return int(value)


def engine_config(table: Mapping[str, Any]) -> EngineConfig:
    """Reads Triton's JSON form of a model configuration. Raises `ConfigError` for what this runtime cannot do."""
    for section in UNSUPPORTED_SECTIONS:
        if table.get(section):
            raise ConfigError(f"`{section}` is not supported by the CPU runtime")
    return EngineConfig(
        file_name=table.get("default_model_filename") or "model.onnx",
        max_batch_size=int(table.get("max_batch_size", 0)),
        inputs=tuple(_tensor(tensor) for tensor in table["input"]),
        outputs=tuple(_tensor(tensor) for tensor in table["output"]),
        batch_inputs=tuple(_batch_input(batch_input) for batch_input in table.get("batch_input", ())),
        parameters={key: str(value.get("string_value", "")) for key, value in table.get("parameters", {}).items()},
        optimisation_level=int(table.get("optimization", {}).get("graph", {}).get("level", 0)),
    )


def _tensor(table: Mapping[str, Any]) -> TensorConfig:
    for key in UNSUPPORTED_KEYS:
        if table.get(key):
            raise ConfigError(f"`{key}` of tensor `{table['name']}` is not supported by the CPU runtime")
    dims = tuple(int(size) for size in table["dims"])
    return TensorConfig(table["name"], table["data_type"], dims, bool(table.get("allow_ragged_batch", False)))


def _batch_input(table: Mapping[str, Any]) -> BatchInput:
    kind, dtype, targets, sources = (table[key] for key in ("kind", "data_type", "target_name", "source_input"))
    if kind not in KINDS or dtype not in BATCH_INPUT_TYPES or len(targets) != 1 or len(sources) != 1:
        raise ConfigError(
            f"batch_input {kind} {dtype} from {sources} to {targets} is not supported",
            hint=f"Each has one source, one target, type {' or '.join(BATCH_INPUT_TYPES)}, kind {', '.join(KINDS)}.",
        )
    return BatchInput(kind, targets[0], BATCH_INPUT_TYPES[dtype], sources[0])
