"""Reads the tensors of checkpoints one at a time.

Only safetensors are read: pickle weights can run code. It does not know what the tensors mean, nor which there must be.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.ensemble.locations import read_json
from preference_core.errors import CheckpointError

BASE_WEIGHTS = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: How the names of a classifier's decoder begin. Bases saved without a head (`AutoModel`) leave it out.
DECODER_PREFIX = "model."
EMBEDDING = f"{DECODER_PREFIX}embed_tokens.weight"

#: Most bytes of one tensor that are held at a time while it is copied unchanged.
BLOCK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: its file, shape, and the dtype's safetensors name (`BF16`, `F32`, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of one checkpoint, by name. Nothing is held open or in memory between reads."""

    #: Names of tensors that are changed as a whole when they are read; others are stored as they are.
    whole: Container[str] = ()

    def __init__(self, folder: Path, weights: str = BASE_WEIGHTS) -> None:
        """Reads the headers of `folder/weights`, or of the shards that `folder/weights.index.json` lists."""
        self.folder = folder
        self.files = _weight_files(folder, weights)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self.tensors.update(_header(file))

    def stored_name(self, name: str) -> str:
        """What a classifier's tensor `name` is called here: so, or without `model.`; `name` where there is neither."""
        bare = name.removeprefix(DECODER_PREFIX)
        return bare if name not in self.tensors and bare in self.tensors else name

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor, in its stored dtype."""
        stored = self.tensors[name]
        with safe_open(stored.file, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name).clone()
        return tensor

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """The same tensor in blocks of rows of at most `BLOCK_BYTES`, so that memory stays flat for any size.

        One of `whole` comes in one block.
        """
        stored = self.tensors[name]
        if len(stored.shape) < 2 or name in self.whole:
            yield self.read(name)
            return
        row_bytes = 4 * max(1, torch.Size(stored.shape[1:]).numel())
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(0, stored.shape[0], step):
            with safe_open(stored.file, framework="pt") as file:
                yield file.get_slice(name)[start : start + step].clone()


def _weight_files(folder: Path, weights: str) -> tuple[Path, ...]:
    index = folder / f"{weights}.index.json"
    if (folder / weights).is_file():
        return (folder / weights,)
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        shards = sorted(set(weight_map.values())) if isinstance(weight_map, Mapping) else []
        if not shards:
            raise CheckpointError(f"`{index}` lists no shards")
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise CheckpointError(f"`{index}` lists `{shard}`, which is not a file in its folder")
        return tuple(folder / shard for shard in shards)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"`{folder}` holds pickle weights only: `{pickles[0]}`",
            hint="Pickle files can run code and are never read. Convert them with `save_pretrained` (safetensors).",
        )
    raise CheckpointError(f"`{folder}` has no `{weights}`")


def _header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: StoredTensor(path, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        hint = pull_hint(path) or "Fetch or save it again."
        raise CheckpointError(f"`{path}` is not a safetensors file: {error}", hint) from error
