"""Which dtype each part of a member's graph has: the configuration's `precision`, spelled out.

Norms, residual stream, rotary positions, soft-cap, softmax and head are float32 in every precision. It knows nothing of
graphs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from preference_core.ensemble.settings import Config, Member, Precision, Quantisation
from preference_core.errors import UserError

GEMM_DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
QUANTISED_DTYPES: Mapping[Precision, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

#: Options of ONNX Runtime's CUDA provider. Its default, TF32, rounds what FP32 GEMMs multiply to 10 bits.
CUDA_OPTIONS = {"use_tf32": "0"}


@dataclass(frozen=True)
class Recipe:
    """`dtype` of the embedding and of all GEMMs but the head; where `quantised` is set, GEMMs are in that instead.

    `dynamic` finds the scales of activations at run time. `keep` are patterns of GEMMs that stay in `dtype`; `alpha` is
    SmoothQuant's, None without smoothing.
    """

    dtype: torch.dtype
    quantised: torch.dtype | None = None
    dynamic: bool = False
    keep: tuple[str, ...] = ()
    alpha: float | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The same as plain text and numbers, for manifests."""
        dtypes = {"gemms": self.dtype, "quantised_gemms": self.quantised}
        named = {key: str(dtype).removeprefix("torch.") for key, dtype in dtypes.items() if dtype is not None}
        return {**named, "dynamic": self.dynamic, "keep": list(self.keep), "alpha": self.alpha}

    @property
    def calibrated(self) -> bool:
        """Whether ranges of activations must be known before the export."""
        return self.quantised is not None and not self.dynamic


def recipe_of(member: Member) -> Recipe:
    """What `precision`, `engine` and `quantisation` of a member come to."""
    quantised = QUANTISED_DTYPES.get(member.precision)
    if quantised is None:
        return Recipe(GEMM_DTYPES[member.precision])
    settings = member.quantisation or Quantisation()
    implied = "dynamic" if member.precision == "int8" and not member.on_gpu else "static"
    dynamic = (settings.method or implied) == "dynamic"
    return Recipe(
        dtype=GEMM_DTYPES[settings.precision or ("fp32" if dynamic else "fp16")],
        quantised=quantised,
        dynamic=dynamic,
        keep=settings.keep,
        alpha=settings.alpha if quantised == torch.int8 and not dynamic and settings.alpha > 0 else None,
    )


def check_supported(config: Config) -> None:
    """Raises for what cannot be served as configured, before anything is fetched or written."""
    for member in config.members:
        if not member.on_gpu and recipe_of(member).dtype == torch.bfloat16:
            raise UserError(
                f"Member `{member.name}`: ONNX Runtime does not run bf16 on a CPU",
                hint='Use `precision = "fp16"` or "fp32" there; or set `gpus`, or `engine = "tensorrt"`.',
            )
