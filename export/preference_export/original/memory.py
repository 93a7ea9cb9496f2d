"""How much fits into the memory of this machine, and of the GPU in use."""

from pathlib import Path

import psutil
import torch

#: Left free beside weights: activations, and whatever else is loaded.
ROOM_BYTES = 4 * 1024**3
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def device_in_use() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def name_of_device() -> str:
    """The name of the GPU in use, else `cpu`."""
    return torch.cuda.get_device_name() if device_in_use() == "cuda" else "cpu"


def fits(size_bytes: int, device: str) -> bool:
    """Whether so much fits into the free memory of `device` (`cuda` or `cpu`), with room to work in."""
    free: int = torch.cuda.mem_get_info()[0] if device == "cuda" else free_memory()
    return size_bytes + ROOM_BYTES < free


def free_memory() -> int:
    """Bytes that this process may still take; a container may have fewer than the machine."""
    available: int = psutil.virtual_memory().available
    try:
        limit = int(CGROUP_LIMIT.read_text())
    except (OSError, ValueError):  # no control groups, or `max`
        return available
    return min(available, limit - int(psutil.Process().memory_info().rss))
