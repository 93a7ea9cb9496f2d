"""Writes merged weights as a Hugging Face checkpoint: sharded safetensors, one tensor at a time.

The safetensors format is small (a length, a JSON header, the data), and the library's own writer wants all tensors of
a file in memory at once.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from preference_core.progress import BytesDone
from preference_export.checkpoint.adapter_names import EMBEDDING
from preference_export.checkpoint.architecture import hugging_face_config
from preference_export.checkpoint.files import BASE_WEIGHTS
from preference_export.checkpoint.merge import MergedWeights

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SHARD_BYTES = 5 * 1000**3
_ALIGNMENT = 8


def write_checkpoint(
    folder: Path,
    base: Path,
    tokenizer: Path,
    weights: MergedWeights,
    labels: Sequence[str],
    dtype: torch.dtype,
    report: BytesDone = lambda written: None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Fills `folder` with a checkpoint that `AutoModelForSequenceClassification` loads; returns its weight files.

    The configuration is that of the folder `base`, with the tokenizer of the folder `tokenizer`.
    """
    config = hugging_face_config(base)
    config.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type]]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.dtype = dtype
    config.vocab_size = weights.shapes[EMBEDDING][0]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # these weights are what it stood for
    config.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    shards = _shards(weights.shapes, dtype, shard_bytes)
    if len(shards) == 1:
        names = [BASE_WEIGHTS]
    else:
        stem, suffix = BASE_WEIGHTS.rsplit(".", maxsplit=1)
        names = [f"{stem}-{index:05}-of-{len(shards):05}.{suffix}" for index in range(1, len(shards) + 1)]
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_bytes(weights.shapes[tensor], dtype) for tensor in weight_map)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{BASE_WEIGHTS}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_shard(file, shard, weights, dtype, report)
    return [folder / name for name in names]


def _shards(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, limit: int) -> list[list[str]]:
    """Names in order, cut so that no file passes `limit` bytes unless one tensor alone does."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _bytes(shape, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(shape, dtype)
    return shards


def _write_shard(
    file: BinaryIO, names: Sequence[str], weights: MergedWeights, dtype: torch.dtype, report: BytesDone
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + _bytes(weights.shapes[name], dtype)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": weights.shapes[name], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for block in weights.blocks(name, dtype):
            data = block.contiguous().view(-1).view(torch.uint8).numpy().data
            file.write(data)
            report(len(data))


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
