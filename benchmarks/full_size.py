"""Checkpoints of published sizes with invented contents: a sharded BF16 base and a LoRA adapter for it.

Shapes and names are those of the real ones; values are cheap pseudo-random numbers of the usual magnitude. Everything
is streamed, so that writing one needs little memory. It knows nothing of tokenizers.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

SHARD_BYTES = 5 * 1000**3
#: Values that every tensor is filled from, each starting elsewhere.
POOL_VALUES = 32 * 1024 * 1024 + 7
STANDARD_DEVIATION = 0.02


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that the published checkpoint holds."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


def write_base(folder: Path, config: Any) -> int:
    """Writes `config.json` and BF16 shards; returns the number of parameters."""
    folder.mkdir(parents=True)
    shapes = tensor_shapes(config)
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    pool = _pool()
    shards = _shards(shapes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update(dict.fromkeys(names, file))
        _write_shard(folder / file, {name: shapes[name] for name in names}, pool)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * parameters}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return parameters


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


def _pool() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(POOL_VALUES, generator=generator) * STANDARD_DEVIATION).bfloat16()


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        bytes_ = 2 * torch.Size(shape).numel()
        if shards[-1] and size + bytes_ > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    return shards


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], pool: torch.Tensor) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = pool.view(torch.uint8).numpy().data
    offset = 0
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = 2 * torch.Size(shape).numel()
            while left:
                piece = data[offset : offset + left]
                file.write(piece)
                left -= len(piece)
                offset = (offset + len(piece)) % len(data)
        file.flush()
        os.fsync(file.fileno())
