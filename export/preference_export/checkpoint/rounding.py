"""Rounds weights as bitsandbytes rounds them in training, and reads a base that way.

An adapter trained on a 4-bit or 8-bit base has learnt to make up for that base's rounding errors. Merged into the
original weights it corrects errors that are not there; merged into the rounded ones it meets what it was trained on.
Which of the two predicts better is for the gate to measure, and not decided here.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from preference_core.ensemble.locations import HEAD
from preference_core.ensemble.settings import Rounding
from preference_core.errors import UserError
from preference_export.checkpoint.files import TensorFiles
from preference_export.checkpoint.quantised_base import QuantisedFiles, dequantised_8bit, scaled

BLOCK_VALUES = 64
#: The 16 values of NF4: quantiles of the normal distribution, scaled to [-1, 1] (Dettmers et al. 2023, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class RoundedFiles(TensorFiles):
    """A checkpoint whose linear layers are read as bitsandbytes would have rounded them."""

    def __init__(self, folder: Path, rounding: Rounding, linear_modules: Iterable[str]) -> None:
        super().__init__(folder)
        names = {f"{module}.weight" for module in linear_modules} - {HEAD}
        self.whole = self.rounded = {self.stored_name(name) for name in names} & self.tensors.keys()
        self.rounding = rounding

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor, in its stored dtype."""
        tensor = super().read(name)
        return ROUNDINGS[self.rounding](tensor) if name in self.rounded else tensor


def open_base(folder: Path, config: object, rounding: Rounding, linear_modules: Iterable[str]) -> TensorFiles:
    """The tensors of a base; `config` is its `transformers` configuration, which says whether it is quantised.

    `linear_modules` are those that training quantises; it leaves out the head, and so does this.
    """
    if getattr(config, "quantization_config", None):
        if rounding != "none":
            raise UserError(
                f"`base_rounding` is `{rounding}`, the base `{folder}` is stored in that or another rounding already",
                hint="Remove `base_rounding`, or name the original base.",
            )
        return QuantisedFiles(folder)
    return TensorFiles(folder) if rounding == "none" else RoundedFiles(folder, rounding, linear_modules)


def _nf4(weight: torch.Tensor) -> torch.Tensor:
    """One scale per 64 values; ties go down, as in bitsandbytes."""
    table = torch.tensor(NF4)
    flat = weight.flatten().float()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK_VALUES)).view(-1, BLOCK_VALUES)
    scales = padded.abs().amax(dim=1)
    shares = (padded * (1.0 / scales.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
    codes = torch.bucketize(shares, (table[:-1] + table[1:]) / 2, out_int32=True)
    values = scaled(table[codes.flatten()], scales, BLOCK_VALUES)[: flat.numel()]
    return values.to(weight.dtype).reshape(weight.shape)


def _int8(weight: torch.Tensor) -> torch.Tensor:
    """LLM.int8: one scale per row; bitsandbytes rounds to half precision first."""
    half = weight.half()
    scales = half.abs().amax(dim=1).float()
    codes = torch.round(half * (127.0 / scales[:, None])).to(torch.int8)
    return dequantised_8bit(codes, scales).to(weight.dtype)


#: How to round, by the name in the configuration.
ROUNDINGS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nf4": _nf4,
    "int8": _int8,
}
