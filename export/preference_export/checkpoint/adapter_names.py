"""What the tensors of an adapter are called: PEFT's own names, whatever wrapped the model when it was saved.

It does not know which tensors an adapter must have.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from preference_core.ensemble.locations import ADAPTER_WEIGHTS
from preference_core.errors import CheckpointError, SystemFailure
from preference_export.checkpoint.files import TensorFiles

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
#: Parts of names that a wrapper adds, and whose they are. PEFT leaves tensors of such names out without a word.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
#: What a PEFT model's own `state_dict` has in the names, and `save_pretrained` takes out: the name of the adapter.
ADAPTER_NAME = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector|modules_to_save)\.([^.]+)(?=\..)")
#: Where PEFT keeps what a module of `modules_to_save` was before training.
REPLACED = "original_module"


def plain_names(files: TensorFiles) -> dict[str, str]:
    """Stored names by the name that PEFT's `save_pretrained` of the unwrapped model gives each tensor.

    Copies of the base's own modules are left out. Raises `CheckpointError` where two tensors have one name.
    """
    names: dict[str, str] = {}
    for stored in sorted(files.tensors):
        name = ADAPTER_NAME.sub(r".\1", ".".join(part for part in stored.split(".") if part not in WRAPPERS))
        if f".{REPLACED}." in name:
            continue
        name = name.replace(".modules_to_save.", ".")
        if name in names and not torch.equal(files.read(names[name]), files.read(stored)):
            raise CheckpointError(
                f"Adapter `{files.folder}` holds two tensors `{name}`: `{names[name]}` and `{stored}`",
                hint="Save one adapter alone, by `save_pretrained` of the unwrapped model.",
            )
        names.setdefault(name, stored)
    return names


def wrappers_of(names: Mapping[str, str]) -> list[str]:
    """What stood in stored names that PEFT would not read, for people: part and whose it is."""
    parts = {part for stored in names.values() for part in stored.split(".")}
    found = [f"`{part}.` ({whose})" for part, whose in WRAPPERS.items() if part in parts]
    adapters = {match[2] for stored in names.values() for match in ADAPTER_NAME.finditer(stored)}
    return found + [f"`{name}.` (a PEFT model's own state_dict)" for name in sorted(adapters)]


def base_name(name: str) -> str:
    """What the base calls a parameter that the adapter holds whole; PEFT's own names, its LoRA matrices, stay odd."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def brought_by(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what an adapter holds, by the base's names."""
    files = TensorFiles(folder, ADAPTER_WEIGHTS)
    return {base_name(name): files.tensors[stored].shape for name, stored in plain_names(files).items()}


@contextmanager
def readable_by_peft(folder: Path) -> Iterator[Path]:
    """The folder of an adapter, or a temporary copy of it whose tensors have the names that PEFT reads."""
    files = TensorFiles(folder, ADAPTER_WEIGHTS)
    names = plain_names(files)
    if files.files == (folder / ADAPTER_WEIGHTS,) and all(name == stored for name, stored in names.items()):
        yield folder
        return
    with TemporaryDirectory() as copy:
        tensors = {name: files.read(stored) for name, stored in names.items()}
        try:
            shutil.copyfile(folder / CONFIG, Path(copy) / CONFIG)
            save_file(tensors, Path(copy) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:  # safetensors' own, where the file system fails
            raise SystemFailure(
                f"A copy of `{folder}` cannot be written to `{copy}`: {error}",
                hint="Free space there, or name another folder with the environment variable TMPDIR.",
            ) from error
        yield Path(copy)
