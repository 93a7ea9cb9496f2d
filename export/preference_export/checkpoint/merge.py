"""Merged weights, one tensor at a time: base tensor plus LoRA delta, computed by PEFT's own layer.

With several adapters they are the mean of what each of them gives.
In float32 every tensor equals that of `PeftModel.merge_and_unload`, bit for bit. Names, shapes and the head are checked
before any data is read. It does not know what the tensors are written to.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn

from preference_core.ensemble.locations import HEAD
from preference_core.errors import CheckpointError, UserError
from preference_export.checkpoint.adapter import Adapter, AdapterError, Lora, is_saved
from preference_export.checkpoint.files import DECODER_PREFIX, EMBEDDING, TensorFiles

ADAPTER_NAME = "default"
FLOATS = ("F64", "F32", "F16", "BF16")
HEAD_BIAS = "score.bias"
NO_BIAS = "A head is `nn.Linear(..., bias=False)`, as in `*ForSequenceClassification`; train it without a bias."
#: Buffers that early checkpoints hold, and that are computed from config.json.
BUFFERS = tuple(f"rotary_emb.{name}" for name in ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached"))
#: In names of tensors of an adapter that was saved with its base, unmerged.
ADAPTER_MARKS = (".lora_", ".base_layer.", ".modules_to_save.", ".original_module.")


class HeadError(UserError):
    """The classification head is missing, or is not for the configured labels."""


class MergedWeights:
    """The weights of a classifier by their Hugging Face names, read and merged when asked for."""

    def __init__(self, base: TensorFiles, adapters: Sequence[Adapter], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of every tensor that will be asked for; all are checked here, for every adapter."""
        self.base, self.adapters, self.shapes = base, tuple(adapters), shapes
        self._stored = {name: base.stored_name(name) for name in shapes}
        self._check_unread()
        for adapter in self.adapters or (None,):
            self._check_head(adapter)
            if adapter is not None:
                self._check_saved(adapter)
            for name, shape in shapes.items():
                self._check(adapter, name, shape)

    def tensor(self, name: str) -> torch.Tensor:
        """One merged tensor in float32."""
        return torch.cat(list(self.blocks(name, torch.float32)))

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The merged tensor as `dtype`, in blocks of rows. It is computed in float32 and then rounded once."""
        if len(self.adapters) > 1 and any(self._changes(adapter, name) for adapter in self.adapters):
            yield _finite(name, self._mean(name), dtype)
        else:
            for block in self._blocks(next(iter(self.adapters), None), name):
                yield _finite(name, block, dtype)

    def _mean(self, name: str) -> torch.Tensor:
        """The mean, in float32, of what each adapter makes of a tensor."""
        total = torch.zeros(self.shapes[name])
        for adapter in self.adapters:
            start = 0
            for block in self._blocks(adapter, name):
                total[start : start + len(block)] += block
                start += len(block)
        return total.div_(len(self.adapters))

    def _blocks(self, adapter: Adapter | None, name: str) -> Iterator[torch.Tensor]:
        """What one adapter makes of a tensor: whole where it is merged, else in blocks as it is stored."""
        lora = _lora(adapter, name)
        if adapter is not None and lora is not None:
            yield self._merged(adapter, lora, name)
        else:
            files, stored = self._source(adapter, name)
            yield from files.blocks(stored)

    def _merged(self, adapter: Adapter, lora: Lora, name: str) -> torch.Tensor:
        files, stored = self._source(adapter, name)
        a, b = (adapter.files.read(part).float() for part in (lora.a, lora.b))
        magnitude = adapter.files.read(lora.magnitude).float() if lora.magnitude else None
        layer = LoraEmbedding if name == EMBEDDING else LoraLinear
        return merged(files.read(stored).float(), a, b, magnitude, lora, adapter.config, layer)

    def _changes(self, adapter: Adapter, name: str) -> bool:
        return name in adapter.saved or _lora(adapter, name) is not None

    def _source(self, adapter: Adapter | None, name: str) -> tuple[TensorFiles, str]:
        """Where the tensor itself is stored: in the adapter, if that replaces it, else in the base."""
        if adapter is not None and name in adapter.saved:
            return adapter.files, adapter.saved[name]
        return self.base, self._stored[name]

    def _check_head(self, adapter: Adapter | None) -> None:
        files, stored = self._source(adapter, HEAD)
        expected = self.shapes[HEAD]
        if stored not in files.tensors:
            raise HeadError(
                f"Base `{files.folder}` has no classification head `{HEAD}`, and there is no adapter",
                hint="Name the adapter that was trained with it, or a base saved by `*ForSequenceClassification`.",
            )
        found = files.tensors[stored].shape
        if found != expected:
            raise HeadError(
                f"Head `{stored}` of `{files.folder}` has shape {list(found)}, expected {list(expected)}: "
                f"the configuration has {expected[0]} labels",
                hint="`labels` must be those that the head was trained with, in that order.",
            )

    def _check_saved(self, adapter: Adapter) -> None:
        """Refuses an adapter that trained a tensor which is not computed here, or that lacks one it says it trained."""
        for name in sorted(adapter.saved.keys() - self.shapes.keys()):
            raise AdapterError(
                f"Adapter `{adapter.files.folder}` trained `{name}`, which this architecture has no place for",
                hint=NO_BIAS if name == HEAD_BIAS else "Left out, it would make every score another one.",
            )
        for name in self.shapes:
            if is_saved(name, adapter.config.modules_to_save or ()) and name not in adapter.saved:
                raise AdapterError(
                    f"Adapter `{adapter.files.folder}` has no tensor `{name}`, which its `modules_to_save` names",
                    hint="Its file is incomplete; save it again.",
                )

    def _check_unread(self) -> None:
        """Refuses tensors of the base that belong to the decoder or its head and would be left out."""
        replaced = {HEAD_BIAS} if self.adapters else set()  # every adapter brings the whole head
        for name in sorted(self.base.tensors.keys() - set(self._stored.values()) - replaced):
            if self._belongs_to_decoder(name):
                raise CheckpointError(
                    f"Base `{self.base.folder}` holds the tensor `{name}`, which this architecture has no place for",
                    hint=NO_BIAS
                    if name == HEAD_BIAS
                    else "Its config.json is of another model, or it holds an adapter that was not merged.",
                )

    def _belongs_to_decoder(self, name: str) -> bool:
        """Whether a tensor is of a part that is computed. Other heads (`lm_head`) and buffers are not."""
        if name.endswith(BUFFERS):
            return False
        parts = {known.removeprefix(DECODER_PREFIX).partition(".")[0] for known in self.shapes}
        first = name.removeprefix(DECODER_PREFIX).partition(".")[0]
        return first in parts or any(mark in name for mark in ADAPTER_MARKS)

    def _check(self, adapter: Adapter | None, name: str, shape: tuple[int, ...]) -> None:
        files, stored = self._source(adapter, name)
        if stored not in files.tensors:
            raise CheckpointError(f"Checkpoint `{files.folder}` has no tensor `{stored}`")
        found = files.tensors[stored].shape
        if found != shape:
            resized = name == EMBEDDING and any(each.embedding_rows for each in self.adapters)
            whose = "another adapter's embedding has" if resized else "the base's config.json asks for"
            raise CheckpointError(
                f"Tensor `{stored}` of `{files.folder}` has shape {list(found)}, {whose} {list(shape)}"
            )
        dtype = files.tensors[stored].dtype
        if dtype not in FLOATS:
            raise CheckpointError(
                f"Tensor `{stored}` of `{files.folder}` is stored as {dtype}, expected one of {', '.join(FLOATS)}",
                hint="Codes without their scales are not weights: name the original base, or one with its "
                "`quantization_config`.",
            )
        lora = _lora(adapter, name)
        if adapter is not None and lora is not None:
            _check_lora(adapter.files, name, lora, shape)


def _lora(adapter: Adapter | None, name: str) -> Lora | None:
    return adapter.loras.get(name.removesuffix(".weight")) if adapter is not None else None


def _check_lora(files: TensorFiles, name: str, lora: Lora, shape: tuple[int, ...]) -> None:
    outputs, inputs = reversed(shape) if name == EMBEDDING else shape
    expected: dict[str, tuple[int, ...]] = {lora.a: (lora.rank, inputs), lora.b: (outputs, lora.rank)}
    if lora.magnitude:
        expected[lora.magnitude] = (outputs,)
    for stored, wanted in expected.items():
        found = files.tensors[stored].shape
        if found != wanted:
            raise AdapterError(
                f"Adapter tensor `{stored}` has shape {list(found)}, `{name}` of this base asks for {list(wanted)}",
                hint="The adapter was trained on another architecture or size, or with another rank.",
            )


def merged(
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None,
    lora: Lora,
    config: LoraConfig,
    kind: type[LoraLinear] | type[LoraEmbedding] = LoraLinear,
) -> torch.Tensor:
    """`weight` `[outputs, inputs]` merged with its LoRA (or rsLoRA, DoRA) by PEFT's own layer; all float32.

    That of an embedding has a row for each token, and `a` and `b` lie the other way round.

    `fan_in_fan_out` is for layers that store `[inputs, outputs]`; every layer here is an `nn.Linear`, for which
    PEFT itself overrules the flag.
    """
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=False,
    )
    embedding = kind is LoraEmbedding
    with torch.device("meta"):
        rows, columns = weight.shape
        bare = nn.Embedding(rows, columns) if embedding else nn.Linear(columns, rows, bias=False)
        layer = kind(bare, ADAPTER_NAME, settings, r=lora.rank, lora_alpha=lora.alpha)
    bare.weight = _frozen(weight)
    if embedding:
        layer.lora_embedding_A[ADAPTER_NAME], layer.lora_embedding_B[ADAPTER_NAME] = _frozen(a), _frozen(b)
    else:
        layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight = _frozen(a), _frozen(b)
    if magnitude is not None:
        layer.lora_magnitude_vector[ADAPTER_NAME].weight = _frozen(magnitude)
    layer.merge()
    return bare.weight.data


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _finite(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` as `dtype`. Its extremes are NaN where any value is, and found twenty times faster than `isfinite`."""
    converted = tensor.to(dtype)
    if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(converted)):
        state = "after rounding to" if bool(torch.isfinite(tensor).all()) else "as"
        raise CheckpointError(
            f"Tensor `{name}` holds NaN or infinity {state} {str(dtype).removeprefix('torch.')}",
            hint="Use a wider precision for this member, or another checkpoint.",
        )
    return converted
