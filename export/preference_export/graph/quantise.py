"""Which GEMMs are quantised, and their weights and scales, made one tensor at a time.

Symmetric throughout: one scale per output channel of a weight, one per tensor of activations (per row, where scales
are found at run time). How they stand in the graph is for `casts`; ranges come from `original.calibration`.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import torch
from torch import Tensor

from preference_core.errors import ConfigError
from preference_export.checkpoint.files import DECODER_PREFIX
from preference_export.graph.precision import Dtypes

#: Largest magnitude that is used.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
#: GEMMs of one module that read the same activations share one scale, so that these are quantised once.
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
#: What a quantised GEMM has beside its weight. The latter two belong to the first of those that share an input.
WEIGHT_SCALE, SMOOTHING, INPUT_SCALE = "weight_scale", "smoothing", "input_scale"

#: Largest magnitude of each input feature `[inputs]` of a GEMM, by the name of its module.
Ranges = Mapping[str, Tensor]


class Weights(Protocol):
    """Tensors by name, read when asked for, in blocks of rows."""

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]: ...


def quantised_gemms(gemms: Sequence[str], dtypes: Dtypes, ranges: Ranges | None = None) -> list[str]:
    """Those of `gemms` that `dtypes` quantises; with `ranges`, without those whose activations are too uneven for it.

    A pattern that keeps nothing is an error: it is misspelt.
    """
    if dtypes.quantised is None:
        return []
    names = [name for name in gemms if name.startswith(DECODER_PREFIX)]
    kept: set[str] = set()
    for pattern in dtypes.keep:
        bare = pattern.removeprefix(DECODER_PREFIX)
        matched = {name for name in names if fnmatchcase(name.removeprefix(DECODER_PREFIX), bare)}
        if not matched:
            raise ConfigError(
                f"`quantisation.keep` has the pattern `{pattern}`, which no GEMM matches",
                hint=f"GEMMs are called `{names[0].removeprefix(DECODER_PREFIX)}` and so on.",
            )
        kept |= matched
    if ranges is not None and dtypes.keep_above is not None:
        alpha = dtypes.alpha or 0.0
        kept |= {name for name in names if name not in kept and spread(ranges[name], alpha) > dtypes.keep_above}
    return [name for name in names if name not in kept]


def spread(ranges: Tensor, alpha: float) -> float:
    """How many times the median input feature's range the largest one's is, once SmoothQuant has taken its share.

    All features of a tensor share one scale: with a spread of 127 the median one is always rounded to 1, 0 or -1.
    """
    used = ranges[ranges > 0]
    return float(used.max() / used.median()) ** (1 - alpha) if len(used) else 1.0


def grouped(names: Sequence[str]) -> list[list[str]]:
    """The same names, in groups that read the same activations."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        kind = next((kinds for kinds in SHARED_INPUTS if own in kinds), (own,))
        groups.setdefault((parent, kind), []).append(name)
    return list(groups.values())


class QuantisedWeights:
    """The weights of a quantised model by its parameters' names, made from float ones as they stream by."""

    def __init__(self, weights: Weights, names: Sequence[str], dtypes: Dtypes, ranges: Ranges) -> None:
        """`names` are those of the quantised GEMMs; `ranges` are needed unless scales are found at run time."""
        assert dtypes.quantised is not None
        self.weights, self.dtypes, self.ranges, self.dtype = weights, dtypes, ranges, dtypes.quantised
        self.groups = {name: group for group in grouped(names) for name in group}
        self._scales: dict[str, list[Tensor]] = {}
        self._stretches: dict[str, Tensor] = {}

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """As `MergedWeights.blocks`. The scales of a weight are known once the weight itself was asked for."""
        module, _, part = name.rpartition(".")
        if module not in self.groups or part == "bias":
            yield from self.weights.blocks(name, dtype)
        elif part == "weight":
            yield from self._quantised(module, name)
        elif part == WEIGHT_SCALE:
            yield torch.cat(self._scales.pop(module))
        elif part == SMOOTHING:
            yield 1 / self._stretch(module)
        else:
            yield scale_of((self.ranges[module] / self._stretch(module)).max(), LARGEST[self.dtype], dtype)

    def _quantised(self, module: str, name: str) -> Iterator[Tensor]:
        largest = LARGEST[self.dtype]
        scales = self._scales.setdefault(module, [])
        for block in self.weights.blocks(name, torch.float32):
            stretched = block * self._stretch(module) if self.dtypes.alpha is not None else block
            scale = scale_of(stretched.abs().amax(1), largest, self.dtypes.dtype)
            scales.append(scale)
            yield quantised(stretched, scale[:, None].float(), largest, self.dtype)

    def _stretch(self, module: str) -> Tensor:
        """What each input feature of a weight is multiplied by, and the activations divided by: SmoothQuant's
        `max|x|^alpha / max|w|^(1 - alpha)` (Xiao et al., 2023), with the largest weight of all GEMMs that share them.
        """
        first = self.groups[module][0]
        if self.dtypes.alpha is None:
            return torch.ones(())
        if first not in self._stretches:
            largest = torch.stack([self._column_maxima(f"{name}.weight") for name in self.groups[first]]).amax(0)
            activations = self.ranges[first]
            stretch = activations**self.dtypes.alpha / largest ** (1 - self.dtypes.alpha)
            self._stretches[first] = torch.where((activations > 0) & (largest > 0), stretch, 1.0)
        return self._stretches[first]

    def _column_maxima(self, name: str) -> Tensor:
        return torch.stack([block.abs().amax(0) for block in self.weights.blocks(name, torch.float32)]).amax(0)


def scale_of(magnitude: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """The step by which `magnitude` becomes `largest`, in the dtype it is stored in; 1 where there is nothing."""
    scale = (magnitude / largest).to(dtype)
    return torch.where(scale > 0, scale, torch.ones((), dtype=dtype))


def quantised(values: Tensor, scale: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """`values / scale`, rounded to even and clipped to `largest`, as QuantizeLinear does."""
    steps = (values / scale).clamp(-largest, largest)
    return (steps.round() if dtype == torch.int8 else steps).to(dtype)
