"""Which dtype each part of a member's graph has: the configuration's `precision`, spelled out.

Norms, residual stream, rotary positions, soft-cap, softmax and head are float32 in every precision. It knows nothing of
graphs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preference_core.ensemble.settings import Config, Member, Precision, Quantisation
from preference_core.errors import UserError

if TYPE_CHECKING:
    import torch

GEMM_DTYPES: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
GEMM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
QUANTISED_DTYPES: Mapping[Precision, str] = {"int8": "int8", "fp8": "float8_e4m3fn"}

#: What static INT8 does unless the configuration says otherwise.
_ALPHA, _KEEP_ABOVE = 0.5, 4.0

#: Options of ONNX Runtime's CUDA provider. Its default, TF32, rounds what FP32 GEMMs multiply to 10 bits.
CUDA_OPTIONS = {"use_tf32": "0"}


@dataclass(frozen=True)
class Dtypes:
    """`gemms` is the dtype of the embedding and of all GEMMs but the head; with `quantised_gemms`, GEMMs are in that.

    Both are names of torch. `dynamic` finds the scales of activations at run time. `keep` are patterns of GEMMs that
    stay in `gemms`, as do GEMMs with a `spread` of calibrated ranges above `keep_above`; `alpha` is SmoothQuant's,
    None without smoothing.
    """

    gemms: str
    quantised_gemms: str | None = None
    dynamic: bool = False
    keep: tuple[str, ...] = ()
    alpha: float | None = None
    keep_above: float | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The same as plain text and numbers, for manifests."""
        quantised = {"quantised_gemms": self.quantised_gemms} if self.quantised_gemms else {}
        kept = {"keep": list(self.keep), "keep_above": self.keep_above}
        return {"gemms": self.gemms, **quantised, "dynamic": self.dynamic, **kept, "alpha": self.alpha}

    @property
    def runs_on_cpu(self) -> bool:
        """Whether ONNX Runtime runs such a graph on a CPU."""
        return self.gemms != "bfloat16"

    @property
    def dtype(self) -> "torch.dtype":
        """`gemms` as torch has it."""
        return _torch_dtype(self.gemms)

    @property
    def quantised(self) -> "torch.dtype | None":
        """`quantised_gemms` as torch has it."""
        return _torch_dtype(self.quantised_gemms) if self.quantised_gemms else None

    def bytes_of(self, gemms: int, embedding: int = 0) -> int:
        """What so many weights of GEMMs and of the embedding take, without the scales of quantised ones."""
        return (1 if self.quantised_gemms else GEMM_BYTES[self.gemms]) * gemms + GEMM_BYTES[self.gemms] * embedding

    @property
    def calibrated(self) -> bool:
        """Whether ranges of activations must be known before the export."""
        return self.quantised_gemms is not None and not self.dynamic


def dtypes_of(member: Member) -> Dtypes:
    """What `precision`, `engine` and `quantisation` of a member come to."""
    quantised = QUANTISED_DTYPES.get(member.precision)
    if quantised is None:
        return Dtypes(GEMM_DTYPES[member.precision])
    settings = member.quantisation or Quantisation()
    dynamic = member.quantisation_method == "dynamic"
    static_int8 = quantised == "int8" and not dynamic
    alpha = _ALPHA if settings.alpha is None else settings.alpha
    keep_above = _KEEP_ABOVE if settings.keep_above is None else settings.keep_above
    return Dtypes(
        gemms=GEMM_DTYPES[settings.precision or ("fp32" if dynamic else "fp16")],
        quantised_gemms=quantised,
        dynamic=dynamic,
        keep=settings.keep,
        alpha=alpha if static_int8 and alpha > 0 else None,
        keep_above=keep_above if static_int8 else None,
    )


def check_supported(config: Config) -> None:
    """Raises for what cannot be served as configured, before anything is fetched or written."""
    for member in config.members:
        if not member.on_gpu and not dtypes_of(member).runs_on_cpu:
            raise UserError(
                f"Member `{member.name}`: ONNX Runtime does not run bf16 on a CPU",
                hint='Use `precision = "fp16"` or "fp32" there; or set `gpus`, or `engine = "tensorrt"`.',
            )


def _torch_dtype(name: str) -> "torch.dtype":
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
