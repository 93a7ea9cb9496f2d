"""`model.onnx` run by ONNX Runtime, given what Triton gives it. Used by the gate only."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from preference_core import tensors
from preference_core.errors import ArtefactError, SystemFailure
from preference_export.artefacts.model import Logits, TokenIds
from preference_export.engine.runtimes import CPU_PROVIDER, CUDA_PROVIDER
from preference_export.graph.precision import CUDA_OPTIONS

PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {CPU_PROVIDER: {}, CUDA_PROVIDER: CUDA_OPTIONS}


class OnnxClassifier:
    """`model.onnx` run by ONNX Runtime, given what Triton gives it."""

    def __init__(self, path: Path, threads: int = 0, provider: str = CPU_PROVIDER, frugal: bool = False) -> None:
        """`threads` 0 leaves the number to ONNX Runtime.

        A `frugal` one leaves weights in their file, mapped, and converts each when its node runs: slower, without the
        optimisations that a server makes, and with little memory of its own.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if frugal:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self.session = session_of(path, path, options, provider)

    def logits(self, sequences: Sequence[TokenIds]) -> Logits:
        """Logits of sequences packed into one call."""
        (logits,) = self.session.run(None, feeds_of(sequences))
        result: Logits = logits
        return result


def session_of(
    model: Path | bytes, path: Path, options: onnxruntime.SessionOptions, provider: str
) -> onnxruntime.InferenceSession:
    """`model`, which is or was made of the file `path`, opened by ONNX Runtime with `provider` and no other."""
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, PROVIDER_OPTIONS[provider])])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise ArtefactError(f"ONNX Runtime cannot load `{path}`: {error}") from error
    if provider not in session.get_providers():  # it would run on the CPU instead, and only log that
        raise SystemFailure(
            f"ONNX Runtime cannot use {provider} here", hint="Check the driver, and the CUDA libraries it needs."
        )
    return session


def feeds_of(sequences: Sequence[TokenIds]) -> dict[str, TokenIds]:
    """The inputs of an engine for sequences packed into one call, as Triton makes them."""
    lengths = [len(ids) for ids in sequences]
    return {
        tensors.INPUT_IDS.name: np.concatenate(sequences).astype(np.int32),
        tensors.LENGTHS.name: np.array(lengths, dtype=np.int32),
        tensors.MAX_SEQLEN.name: np.zeros(max(lengths), dtype=np.int32),
    }
