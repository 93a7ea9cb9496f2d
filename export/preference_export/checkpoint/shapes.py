"""How many weights a member has: from the headers of its files, else from the table of published bases.

It needs no library that takes seconds, and reads no weights.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from preference_core.ensemble.locations import HEAD, read_json
from preference_core.ensemble.published import BASES
from preference_core.ensemble.settings import Classifier
from preference_core.errors import CheckpointError
from preference_export.checkpoint.architecture import check_family

#: Parameters that the page of each published base states, its language-model head included, by the start of its hub id.
PARAMETERS = {
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b": 999_885_952,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "mistralai/Mistral-7B": 7_241_732_096,
}
STORED_BYTES = 2
LM_HEAD, EMBEDDING, GEMM = "lm_head.", "embed_tokens.weight", "_proj.weight"
#: What bitsandbytes stores 4-bit weights as: two in each element of a column.
PACKED = "U8"


@dataclass(frozen=True)
class Shapes:
    """What a member consists of. `known_from` says what the numbers rest on.

    `embedding`, `gemms` and `others` count its weights: the others (norms, biases, head) are always float32. `largest`
    is the largest GEMM. `bytes_in` are those of the base.
    """

    known_from: str
    architecture: str
    layers: int
    heads: int
    embedding: int
    gemms: int
    others: int
    largest: int
    bytes_in: int


def shapes_of(member: Classifier, labels: int) -> Shapes:
    """The shapes of a member with a head for `labels` labels. Raises if nothing here says what they are."""
    on_hub, folder = member.base_location.is_on_hub(), member.base_location.folder_with("config.json")
    if folder is None and on_hub:
        return _published(member, labels)
    folder = folder or Path(member.base)
    table, stored = read_json(folder / "config.json"), dict(_stored(folder))
    check_family(str(table.get("model_type")))
    stored[HEAD] = labels * _count(table, "hidden_size")
    embedding = sum(count for name, count in stored.items() if name.endswith(EMBEDDING))
    gemms = [count for name, count in stored.items() if name.endswith(GEMM)]
    return Shapes(
        known_from="its config.json and the headers of its weights",
        architecture=table["model_type"],
        layers=_count(table, "num_hidden_layers"),
        heads=_count(table, "num_attention_heads"),
        embedding=embedding,
        gemms=sum(gemms),
        others=sum(stored.values()) - embedding - sum(gemms),
        largest=max(gemms, default=0),
        bytes_in=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    )


def stored_weights(folder: Path) -> int:
    """All weights of a checkpoint but the language model's head, as far as its files can be read."""
    return sum(count for _, count in _stored(folder))


def _count(table: Mapping[str, Any], key: str) -> int:
    value = table.get(key)
    return value if isinstance(value, int) else 0


def _stored(folder: Path) -> Iterator[tuple[str, int]]:
    """Each weight and bias of a checkpoint, and how many numbers it is."""
    for path in folder.glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith((".weight", ".bias")) and not name.startswith(LM_HEAD):
                    part = file.get_slice(name)
                    yield name, math.prod(part.get_shape()) * (2 if part.get_dtype() == PACKED else 1)


def published_parameters(base: str) -> int:
    """All weights of a published base."""
    return next(count for start, count in PARAMETERS.items() if base.startswith(start))


def _published(member: Classifier, labels: int) -> Shapes:
    shape = BASES.get(member.base)
    if shape is None:
        raise CheckpointError(
            f"`base` of `{member.name}` is `{member.base}`, which is not on this machine and not among the known bases",
            hint=f"Fetch its config.json: `hf download {member.base} config.json --revision {member.revision}`.",
        )
    hidden, parameters = shape["hidden_size"], published_parameters(member.base)
    embedding = shape["vocab_size"] * hidden
    return Shapes(
        known_from="the published shapes, stored in 16 bits; it is not on this machine",
        architecture=shape["model_type"],
        layers=shape["num_hidden_layers"],
        heads=shape["num_attention_heads"],
        embedding=embedding,
        gemms=parameters - embedding * (1 if shape["tie_word_embeddings"] else 2),
        others=labels * hidden,
        largest=shape["intermediate_size"] * hidden,
        bytes_in=STORED_BYTES * parameters,
    )
