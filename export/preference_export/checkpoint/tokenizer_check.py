"""Whether the tokenizer that was saved with an adapter is that of its base: exported is the base's.

Only what decides ids is compared. Padding, truncation and special tokens around a text are decided by this project.
"""

import json
from pathlib import Path
from typing import Any

from preference_core.artefacts.manifest import sha256_of
from preference_core.battles.tokenisation import TOKENIZER_FILE, read_tokenizer
from preference_core.errors import ArtefactError
from preference_export.checkpoint.files import Checkpoint
from preference_export.checkpoint.source import Source

#: Parts of `tokenizer.json` from which the ids of a text follow.
DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")


def check_tokenizers(source: Source) -> None:
    """Raises `ArtefactError` naming the part in which an adapter's tokenizer differs from the base's."""
    own = source.base.folder / TOKENIZER_FILE
    for adapter in source.adapters:
        other = adapter.folder / TOKENIZER_FILE
        if not (own.is_file() and other.is_file()) or sha256_of(own) == sha256_of(other):
            continue
        one, two = _parts(own), _parts(other)
        for part in DECIDING:
            if one[part] != two[part]:
                raise _different(source.base, adapter, part)


def check_ids(base: Path, rows: int) -> None:
    """Raises `ArtefactError` naming the first token of the base's tokenizer whose id is beyond the embedding's rows.

    A text that spells such a token would fail inside the runtime, and no sample may hold one. A checkpoint without a
    tokenizer is refused elsewhere.
    """
    path = base / TOKENIZER_FILE
    if not path.is_file():
        return
    beyond = {token: id for token, id in read_tokenizer(path).get_vocab(with_added_tokens=True).items() if id >= rows}
    if beyond:
        token = min(beyond, key=lambda name: beyond[name])
        raise ArtefactError(
            f"`{path}` gives `{token}` the id {beyond[token]}, and the embedding has {rows} rows",
            hint="A token was added without `resize_token_embeddings`. Remove it from the tokenizer (nothing is padded "
            "here), or export a merged base with the resized embedding.",
        )


def _different(base: Checkpoint, adapter: Checkpoint, part: str) -> ArtefactError:
    return ArtefactError(
        f"The tokenizer beside the adapter `{adapter.origin}` is not that of the base `{base.origin}`: "
        f"their `{part}` differ",
        hint=f"Text would be read otherwise than in training. Use a base with the adapter's {TOKENIZER_FILE}, or "
        "remove that file from the adapter if it was never used.",
    )


def _parts(path: Path) -> dict[str, Any]:
    """`tokenizer.json` as the installed library writes it, so that versions of the format compare."""
    parts: dict[str, Any] = json.loads(read_tokenizer(path).to_str())
    return parts
