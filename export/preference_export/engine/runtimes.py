"""The GPU in use and the runtimes that are installed. Each library is imported only where a member needs it."""

from importlib.metadata import distributions
from typing import Any

from preference_core.ensemble.settings import Member
from preference_core.errors import UserError

NO_GPU = "none"
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


def tensorrt_module() -> Any:
    """The `tensorrt` package; a `UserError` where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(
            f"TensorRT is not installed here: {error}",
            hint='Install it with `pip install "preference-export[engine]"`.',
        ) from error
    return tensorrt


def gpu_architecture() -> str:
    """Compute capability of the GPU in use, such as `sm_90`; `none` on a machine without one."""
    import torch

    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def use_gpu_of(member: Member) -> None:
    """Builds and runs on the first of the GPUs that the member is served on; without any GPU there is nothing to do."""
    if not member.gpus:
        return
    import torch

    if torch.cuda.is_available():
        if member.gpus[0] >= torch.cuda.device_count():
            raise UserError(
                f"`gpus` of `{member.name}` begins with {member.gpus[0]}; this machine has {torch.cuda.device_count()}",
                hint="Number them from 0.",
            )
        torch.cuda.set_device(member.gpus[0])


def provider_for(member: Member) -> str:
    """What runs a member's graph here: ONNX Runtime's CUDA provider where it is installed and the member has a GPU."""
    on_gpu = gpu_architecture() != NO_GPU if member.engine == "tensorrt" else bool(member.gpus)
    if not on_gpu:
        return CPU_PROVIDER
    import onnxruntime

    return CUDA_PROVIDER if CUDA_PROVIDER in onnxruntime.get_available_providers() else CPU_PROVIDER


def onnxruntime_version() -> str:
    """The version of ONNX Runtime, whichever distribution brought it."""
    return next(d.version for name in ("onnxruntime", "onnxruntime-gpu") for d in distributions(name=name))
