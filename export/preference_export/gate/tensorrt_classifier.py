"""`model.plan` run by TensorRT on this machine's GPU, given what Triton gives it. Used by the gate only."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from preference_core import tensors
from preference_core.errors import ArtefactError, SystemFailure
from preference_export.artefacts.model import Logits, TokenIds
from preference_export.engine.runtimes import gpus, tensorrt_module
from preference_export.gate.onnx_classifier import feeds_of


class TensorRtClassifier:
    """An engine under one of its optimisation profiles; kernels differ between them."""

    def __init__(self, engine: Any, profile: int, labels: int) -> None:
        """`profile` counts from 0. Raises `SystemFailure` where the GPU has no room for it."""
        self.labels = labels
        self._engine = engine
        self._output = tensors.logits(labels).name
        self._context = engine.create_execution_context()
        stream = torch.cuda.current_stream()
        if self._context is None or not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise SystemFailure(
                f"TensorRT cannot run profile {profile} of the engine", hint="Its memory may not fit; see `nvidia-smi`."
            )
        stream.synchronize()

    def logits(self, sequences: Sequence[TokenIds]) -> Logits:
        """Logits of sequences packed into one call."""
        buffers = {name: torch.from_numpy(values).cuda() for name, values in feeds_of(sequences).items()}
        for name, buffer in buffers.items():
            if not self._context.set_input_shape(name, tuple(buffer.shape)):
                raise ArtefactError(f"The engine takes no `{name}` of shape {list(buffer.shape)}")
        buffers[self._output] = torch.empty(len(sequences), self.labels, device="cuda")
        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.current_stream()
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise SystemFailure("TensorRT failed to run the engine")
        stream.synchronize()
        result: Logits = buffers[self._output].cpu().numpy()
        return result


def classifiers_of_plan(path: Path, labels: int) -> list[TensorRtClassifier]:
    """The engine in `path` under each of its profiles.

    Raises `ArtefactError` for an engine that this TensorRT or this GPU does not take.
    """
    trt = tensorrt_module()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ArtefactError(
            f"`{path}` does not load: this machine has TensorRT {trt.__version__} and {' '.join(gpus())}",
            hint="Build it here with `preference-export engine`; its manifest says what it was built for.",
        )
    return [TensorRtClassifier(engine, profile, labels) for profile in range(engine.num_optimization_profiles)]
