"""Checkpoints of published sizes with invented contents: a sharded BF16 base and a LoRA adapter for it.

Shapes and names are those of the real ones; values are cheap pseudo-random numbers of the usual magnitude. Everything
is streamed, so that writing one needs little memory. It knows nothing of tokenizers.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from preference_export.checkpoint.write import write_tensors

#: Values that every tensor is filled from, each starting elsewhere.
POOL_VALUES = 32 * 1024 * 1024 + 7
STANDARD_DEVIATION = 0.02


def tensor_shapes(config: Any, kind: Any = AutoModelForCausalLM) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the published checkpoint holds, or a classifier with its head."""
    with torch.device("meta"):
        model = kind.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def write_base(folder: Path, config: Any, kind: Any = AutoModelForCausalLM) -> int:
    """Writes `config.json` and BF16 shards; returns the number of parameters."""
    folder.mkdir(parents=True)
    shapes = tensor_shapes(config, kind)
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    write_tensors(folder, shapes, torch.bfloat16, _Invented(shapes).blocks)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def write_adapter(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    modules: Sequence[str],
    layers: Iterable[int],
    *,
    rank: int = 16,
    labels: int = 3,
) -> None:
    """A LoRA adapter in BF16 on `modules` (`q_proj`, ...) of `layers`, with a score head."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    hidden = shapes["model.norm.weight"][0]

    def values(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * STANDARD_DEVIATION).bfloat16()

    layers = list(layers)
    tensors = {"base_model.model.score.weight": values(labels, hidden)}
    for name, shape in shapes.items():
        parts = name.split(".")
        if name.startswith("model.layers.") and int(parts[2]) in layers and parts[-2] in modules:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = values(rank, shape[1])
            tensors[f"{stem}.lora_B.weight"] = values(shape[0], rank)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "layers_to_transform": layers,
        "modules_to_save": ["classifier", "score"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))


class _Invented:
    """Contents of tensors: the values of one pool, again and again."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._pool = (torch.randn(POOL_VALUES, generator=generator) * STANDARD_DEVIATION).bfloat16()
        self._shapes, self._offset = shapes, 0

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """One tensor, flat, in pieces of the pool."""
        left = torch.Size(self._shapes[name]).numel()
        while left:
            piece = self._pool[self._offset : self._offset + left]
            yield piece
            left -= len(piece)
            self._offset = (self._offset + len(piece)) % len(self._pool)
