"""Whether texts become the ids that the owner's training gave them.

The tokenizer saved with an adapter must be that of its base, and what is exported must read like Transformers'
`AutoTokenizer`: every special and added token, and the special tokens round a text. Padding and truncation are decided
by this project.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from preference_core.artefacts.manifest import sha256_of
from preference_core.battles.battle import Battle
from preference_core.battles.tokenisation import (
    TOKENIZER_FILE,
    BattleTokenizer,
    TokenisationSettings,
    read_tokenizer,
)
from preference_core.ensemble.locations import Checkpoint
from preference_core.ensemble.member_tokenizer import TOKENIZER_SETTINGS, has_tokenizer
from preference_core.ensemble.settings import Classifier
from preference_core.ensemble.special_tokens import Around, around_by_mask, check_special_tokens, voices_of
from preference_core.errors import ArtefactError, shortened
from preference_export.checkpoint.source import Source

#: Parts of `tokenizer.json` from which the ids of a text follow.
DECIDING = ("added_tokens", "normalizer", "pre_tokenizer", "model")

#: Characters that normalisers and pre-tokenisers treat in their own ways.
PROBE = " Two  spaces,\ttabs\n\n\nlines; don't, 12345, É e\u0301 ﬁ ½ 日本語 🚀 \u00a0<|x|> "

CLASS_HINT = (
    f"Correct `tokenizer_class` in its {TOKENIZER_SETTINGS}; `PreTrainedTokenizerFast` takes {TOKENIZER_FILE} as it is."
)


def tokenizer_of(source: Source) -> Checkpoint:
    """Whose tokenizer is exported: the first adapter's that carries one, else the base's."""
    return next((adapter for adapter in source.adapters if has_tokenizer(adapter.folder)), source.base)


def check_reading(member: Classifier, source: Source, settings: TokenisationSettings) -> None:
    """Raises `ArtefactError` where the tokenizer of training would have read a text differently from the exported one.

    The tokenizers of training are those saved with the adapters; where there are none, it is the base's.
    """
    check_tokenizers(source)
    adapters = [adapter for adapter in source.adapters if (adapter.folder / TOKENIZER_FILE).is_file()]
    for checkpoint in adapters or [source.base]:
        voices = voices_of(checkpoint.folder, settings)
        if (checkpoint.folder / TOKENIZER_SETTINGS).is_file():
            auto = auto_tokenizer(checkpoint)
            check_same_ids(checkpoint, auto, [PROBE, *_spelled(checkpoint, auto)])
            _check_tokens(checkpoint, auto, settings)
            voices["`AutoTokenizer`"] = around_of(auto)
        check_special_tokens(member, checkpoint.origin, settings, voices, own=bool(adapters))


def auto_tokenizer(checkpoint: Checkpoint) -> Any:
    """What Transformers makes of a checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        raise ArtefactError(
            f"Transformers cannot load the tokenizer of `{checkpoint.origin}`: {error}",
            hint=CLASS_HINT,
        ) from error


def check_same_ids(checkpoint: Checkpoint, auto: Any, texts: Iterable[str]) -> None:
    """Raises `ArtefactError` naming the first text that `tokenizer.json` reads differently from `AutoTokenizer`."""
    own = read_tokenizer(checkpoint.folder / TOKENIZER_FILE)
    for text in texts:
        ours, theirs = own.encode(text, add_special_tokens=False).ids, _ids(checkpoint, auto, text)
        if ours == theirs:
            continue
        first = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        raise ArtefactError(
            f"Transformers reads texts differently from {TOKENIZER_FILE} of `{checkpoint.origin}`: of "
            f"{shortened(text)!r}, `{type(auto).__name__}` makes {_tokens(auto, theirs[first:])} where "
            f"{TOKENIZER_FILE} makes {_tokens(auto, ours[first:])}",
            hint="If training used Transformers as it is installed here, save the tokenizer again with "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`. If it used "
            f'{TOKENIZER_FILE} as it is, write `"tokenizer_class": "PreTrainedTokenizerFast"` into '
            f"{TOKENIZER_SETTINGS}, and remove `split_special_tokens` and tokens that {TOKENIZER_FILE} lacks.",
        )


def _ids(checkpoint: Checkpoint, auto: Any, text: str) -> list[int]:
    try:
        return list(auto.encode(text, add_special_tokens=False))
    except Exception as error:  # of many kinds
        raise ArtefactError(
            f"Transformers makes a `{type(auto).__name__}` of the tokenizer of `{checkpoint.origin}`, which reads "
            f"nothing: {error}",
            hint=CLASS_HINT,
        ) from error


def around_of(auto: Any) -> Around:
    encoding = auto("a", return_special_tokens_mask=True)
    return around_by_mask(auto.convert_ids_to_tokens(encoding["input_ids"]), encoding["special_tokens_mask"])


def _check_tokens(checkpoint: Checkpoint, auto: Any, settings: TokenisationSettings) -> None:
    """The files of a checkpoint may name several beginnings or ends; `AutoTokenizer` chooses one."""
    for kind in ("bos_token", "eos_token"):
        ours, theirs = getattr(settings, kind), getattr(auto, kind)
        if ours != theirs:
            raise ArtefactError(
                f"`{kind}` of `{checkpoint.origin}` is `{ours}` by its files, and `{theirs}` by `AutoTokenizer`",
                hint=f"Correct {TOKENIZER_SETTINGS}, special_tokens_map.json or those of the base, whichever is wrong.",
            )


def _spelled(checkpoint: Checkpoint, auto: Any) -> list[str]:
    """Texts that spell every added and special token that one of both knows."""
    added = json.loads((checkpoint.folder / TOKENIZER_FILE).read_text(encoding="utf-8")).get("added_tokens") or []
    tokens = {*auto.get_added_vocab(), *auto.all_special_tokens, *(entry["content"] for entry in added)}
    return [f"before {token} after{token}next" for token in sorted(tokens)]


def _tokens(auto: Any, ids: Sequence[int]) -> str:
    return " ".join(f"{number} `{auto.convert_ids_to_tokens(number)}`" for number in ids[:3]) or "nothing"


def check_tokenizers(source: Source) -> None:
    """Raises `ArtefactError` naming the part in which an adapter's tokenizer differs from the exported or the base's.

    An adapter whose tokenizer is exported may have added tokens: those of training.
    """
    exported = tokenizer_of(source)
    for adapter in source.adapters:
        for other in (exported, source.base):
            files = [checkpoint.folder / TOKENIZER_FILE for checkpoint in (other, adapter)]
            if not all(file.is_file() for file in files) or sha256_of(files[0]) == sha256_of(files[1]):
                continue
            one, two = map(_parts, files)
            if adapter == exported:
                two["added_tokens"] = [token for token in two["added_tokens"] if token in one["added_tokens"]]
            for part in DECIDING:
                if one[part] != two[part]:
                    raise _different(other, adapter, part)


def check_ids(source: Source, settings: TokenisationSettings) -> list[str]:
    """What is to be said of tokens beyond the embedding's rows: a battle is refused for spelling one.

    That is for added tokens of the base's own tokenizer, which no other text comes to. Raises `ArtefactError` for those
    that training added, those that the template needs, and pieces of the vocabulary, which any text may hold.
    """
    path, rows = tokenizer_of(source).folder / TOKENIZER_FILE, settings.embedding_rows
    assert rows is not None
    tokenizer = read_tokenizer(path)
    beyond = sorted((id, token) for token, id in tokenizer.get_vocab(with_added_tokens=True).items() if id >= rows)
    if not beyond:
        return []
    own = source.base.folder / TOKENIZER_FILE
    added = read_tokenizer(own).get_added_tokens_decoder() if own.is_file() else {}
    template = BattleTokenizer(tokenizer, replace(settings, embedding_rows=None)).encode(Battle(("",), ("",), ("",)))
    for id, token in beyond:
        if id not in added or id in template.ids:
            raise ArtefactError(
                f"`{path}` gives `{token}` the id {id}, and the embedding has {rows} rows",
                hint="A token was added without `resize_token_embeddings`, or the adapter was saved without the "
                "resized embedding (`save_embedding_layers=True`). If no text holds it, remove it from the tokenizer: "
                "nothing is padded here.",
            )
    (id, token), more = beyond[0], f", and {len(beyond) - 1} more" if len(beyond) > 1 else ""
    return [
        f"`{path}` gives `{token}` the id {id}{more}, and the embedding has {rows} rows: battles that spell it fail"
    ]


def _different(other: Checkpoint, adapter: Checkpoint, part: str) -> ArtefactError:
    return ArtefactError(
        f"The tokenizer beside the adapter `{adapter.origin}` is not that of `{other.origin}`: their `{part}` differ",
        hint=f"Text would be read differently than in training. Use a base with the adapter's {TOKENIZER_FILE}, or "
        "remove that file from the adapter if it was never used.",
    )


def _parts(path: Path) -> dict[str, Any]:
    """`tokenizer.json` as the installed library writes it, so that versions of the format compare."""
    parts: dict[str, Any] = json.loads(read_tokenizer(path).to_str())
    return parts
