"""The GPU in use and the runtimes that are installed. Each library is imported only where a member needs it."""

import ctypes
from functools import cache
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

from preference_core.ensemble.settings import Member
from preference_core.errors import UserError

NO_GPU = "none"
CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
#: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver's interface.
COMPUTE_CAPABILITY = (75, 76)


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


@cache
def gpus() -> tuple[str, ...]:
    """Compute capability of each GPU that torch can use, such as `sm_90`. It asks the driver: torch takes seconds."""
    if _version_of_torch()["cuda"] is None:
        return ()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_capability(driver, index) for index in range(count.value))


def gpu_architecture(member: Member) -> str:
    """Compute capability of the first of the GPUs that a member is served on; `none` on a machine without any."""
    first = member.gpus[0] if member.gpus else 0
    if gpus() and first >= len(gpus()):
        raise UserError(
            f"`gpus` of `{member.name}` begins with {first}; this machine has {len(gpus())}",
            hint="Number them from 0.",
        )
    return gpus()[first] if gpus() else NO_GPU


def use_gpu_of(member: Member) -> None:
    """Builds and runs what follows on that GPU; does nothing without one."""
    if member.gpus and gpu_architecture(member) != NO_GPU:
        import torch

        torch.cuda.set_device(member.gpus[0])


def provider_for(member: Member) -> str:
    """What runs a member's graph here: ONNX Runtime's CUDA provider where it is installed and the member has a GPU."""
    on_gpu = gpu_architecture(member) != NO_GPU if member.engine == "tensorrt" else bool(member.gpus)
    if not on_gpu:
        return CPU_PROVIDER
    import onnxruntime

    return CUDA_PROVIDER if CUDA_PROVIDER in onnxruntime.get_available_providers() else CPU_PROVIDER


def onnxruntime_version() -> str:
    """The version of ONNX Runtime, whichever distribution brought it."""
    return next(d.version for name in ("onnxruntime", "onnxruntime-gpu") for d in distributions(name=name))


def _version_of_torch() -> dict[str, Any]:
    """What `torch.version` holds, read without importing torch."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    return run_path(str(Path(torch.origin).with_name("version.py")))


def _capability(driver: ctypes.CDLL, index: int) -> str:
    value, numbers = ctypes.c_int(), []
    for attribute in COMPUTE_CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, index)
        numbers.append(value.value)
    return "sm_{}{}".format(*numbers)
