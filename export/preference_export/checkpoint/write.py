"""Writes merged weights as a Hugging Face checkpoint: sharded safetensors, one tensor at a time.

The safetensors format is small (a length, a JSON header, the data), and the library's own writer needs all tensors of
a file in memory at once.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from preference_core.progress import BytesDone
from preference_export.checkpoint.architecture import hugging_face_config
from preference_export.checkpoint.files import EMBEDDING
from preference_export.checkpoint.merge import MergedWeights

DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SHARD_BYTES = 5 * 1000**3
_ALIGNMENT = 8

Shapes = Mapping[str, tuple[int, ...]]
#: The contents of a tensor, by its name, in one or more blocks.
Blocks = Callable[[str], Iterable[torch.Tensor]]


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
    return write_tensors(folder, weights.shapes, dtype, lambda name: weights.blocks(name, dtype), report, shard_bytes)


def write_tensors(
    folder: Path,
    shapes: Shapes,
    dtype: torch.dtype,
    blocks: Blocks,
    report: BytesDone = lambda written: None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes one file, or shards with their index: no file passes `shard_bytes` unless one tensor alone does."""
    named: dict[str, Any] = dict(shapes)
    split = split_state_dict_into_shards_factory(
        named,
        get_storage_size=lambda shape: _bytes(shape, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, names in split.filename_to_tensors.items():
        _write_shard(folder / file, {name: shapes[name] for name in names}, dtype, blocks, report)
    return [folder / file for file in split.filename_to_tensors]


def _write_shard(path: Path, shapes: Shapes, dtype: torch.dtype, blocks: Blocks, report: BytesDone) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape, dtype)
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            for block in blocks(name):
                data = block.contiguous().view(-1).view(torch.uint8).numpy().data
                file.write(data)
                report(len(data))


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
