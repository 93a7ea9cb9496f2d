"""Bases stored by bitsandbytes in 4 or 8 bits, read as the numbers that they stand for, one tensor at a time.

The arithmetic is bitsandbytes' own, to the last bit, in plain torch: neither bitsandbytes nor a GPU is
needed. It does not know what a tensor is for.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from preference_core.errors import CheckpointError
from preference_export.checkpoint.files import StoredTensor, TensorFiles

FOUR_BIT_STATE = ".quant_state.bitsandbytes__"
FOUR_BIT_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
EIGHT_BIT_SCALES = ".SCB"
EIGHT_BIT_FORMAT = ".weight_format"
#: What bitsandbytes multiplies by for 1 / 127.
PER_EIGHT_BIT_STEP = 0.007874015718698502
DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}


@dataclass(frozen=True)
class FourBitState:
    """How a 4-bit tensor is to be read. `nested_*` are set where its scales are themselves stored in 8 bits."""

    shape: tuple[int, ...]
    dtype: str
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float


class QuantisedFiles(TensorFiles):
    """The tensors of a bitsandbytes checkpoint under the names and with the shapes of the model's parameters.

    4-bit tensors come in the dtype that they were quantised from, 8-bit tensors in float32.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._stored = TensorFiles(folder)
        self._four_bit: dict[str, FourBitState] = {}
        self._eight_bit: set[str] = set()
        for name in self._stored.tensors:
            if FOUR_BIT_STATE in name:
                self._add_four_bit(name)
            elif name.endswith(EIGHT_BIT_SCALES):
                self._add_eight_bit(name)
        self.whole = self._four_bit.keys() | self._eight_bit

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor, dequantised."""
        if name in self._four_bit:
            return self._read_four_bit(name, self._four_bit[name])
        if name in self._eight_bit:
            scales = self._stored.read(name.removesuffix(".weight") + EIGHT_BIT_SCALES)
            return dequantised_8bit(self._stored.read(name), scales)
        return self._stored.read(name)

    def _add_four_bit(self, state_name: str) -> None:
        name, _, kind = state_name.partition(FOUR_BIT_STATE)
        state = _state(self.folder, name, kind, self._stored.read(state_name))
        parts = {"absmax", "quant_map"} | ({"nested_absmax", "nested_quant_map"} if state.nested_blocksize else set())
        for part in sorted(parts):
            if f"{name}.{part}" not in self._stored.tensors:
                raise CheckpointError(f"4-bit tensor `{name}` of `{self.folder}` lacks its part `{part}`")
        for part in FOUR_BIT_PARTS:
            self.tensors.pop(f"{name}.{part}", None)
        del self.tensors[state_name]
        file = self._stored.tensors[name].file
        self.tensors[name] = StoredTensor(file, state.shape, DTYPES[state.dtype][0])
        self._four_bit[name] = state

    def _add_eight_bit(self, scales_name: str) -> None:
        module = scales_name.removesuffix(EIGHT_BIT_SCALES)
        name = f"{module}.weight"
        stored, scales = self._stored.tensors.get(name), self._stored.tensors[scales_name]
        if stored is None or stored.dtype != "I8" or scales.shape != stored.shape[:1]:
            raise CheckpointError(f"8-bit scales `{scales_name}` of `{self.folder}` belong to no 8-bit tensor `{name}`")
        layout = module + EIGHT_BIT_FORMAT
        if layout in self._stored.tensors and int(self._stored.read(layout).item()) != 0:
            raise CheckpointError(
                f"8-bit tensor `{name}` of `{self.folder}` is stored in a layout of one GPU type",
                hint="Save it again with bitsandbytes 0.45 or later, which stores rows.",
            )
        del self.tensors[scales_name]
        self.tensors.pop(layout, None)
        self.tensors[name] = StoredTensor(stored.file, stored.shape, "F32")
        self._eight_bit.add(name)

    def _read_four_bit(self, name: str, state: FourBitState) -> torch.Tensor:
        scales = self._stored.read(f"{name}.absmax")
        if state.nested_blocksize:
            nested = self._stored.read(f"{name}.nested_absmax").float()
            table = self._stored.read(f"{name}.nested_quant_map").float()
            scales = scaled(table[scales.int()], nested, state.nested_blocksize) + state.nested_offset
        codes = self._stored.read(name).contiguous().view(torch.uint8).flatten()
        table = self._stored.read(f"{name}.quant_map").float()
        count = torch.Size(state.shape).numel()
        if codes.numel() != -(-count // 2) or scales.numel() != -(-count // state.blocksize):
            raise CheckpointError(
                f"4-bit tensor `{name}` of `{self.folder}` has {codes.numel()} bytes and {scales.numel()} scales, "
                f"which is not its shape {list(state.shape)}"
            )
        values = scaled(unpacked(codes, table)[:count], scales.float(), state.blocksize)
        return values.to(DTYPES[state.dtype][1]).reshape(state.shape)


def unpacked(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Values float32 `[2 n]` of bytes `[n]` with two codes each, the first one in the upper half; `table` `[16]`."""
    byte = torch.arange(256)
    pairs = torch.stack((table[byte >> 4], table[byte & 15]), dim=1)
    return F.embedding(codes.int(), pairs).flatten()


def scaled(values: torch.Tensor, scales: torch.Tensor, blocksize: int) -> torch.Tensor:
    """Multiplies each block of `values` `[n]` by its scale, in place; the last block may be shorter."""
    whole = values.numel() // blocksize
    values[: whole * blocksize].view(-1, blocksize).mul_(scales[:whole, None])
    values[whole * blocksize :].mul_(scales[whole:])
    return values


def dequantised_8bit(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Float32 of INT8 `codes` `[outputs, inputs]` with one scale per row (`SCB`, the row's largest magnitude)."""
    return codes.float().mul_(scales.float()[:, None]).mul_(PER_EIGHT_BIT_STEP)


def _state(folder: Path, name: str, kind: str, packed: torch.Tensor) -> FourBitState:
    """Reads the JSON that bitsandbytes stores as bytes in a tensor."""
    try:
        table: dict[str, Any] = json.loads(bytes(packed.tolist()).decode("utf-8"))
        state = FourBitState(
            shape=tuple(int(size) for size in table["shape"]),
            dtype=str(table["dtype"]),
            blocksize=int(table["blocksize"]),
            nested_blocksize=int(table["nested_blocksize"]) if "nested_blocksize" in table else None,
            nested_offset=float(table.get("nested_offset", 0.0)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The 4-bit state of `{name}` in `{folder}` cannot be read: {error!r}") from error
    if kind not in ("nf4", "fp4") or state.dtype not in DTYPES or state.blocksize < 1:
        raise CheckpointError(f"4-bit tensor `{name}` of `{folder}` is `{kind}` of {state}, which is not supported")
    return state
