"""How a member reads battles: what its configuration says, with the special tokens that its checkpoint names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preference_core.battles.template import template_of
from preference_core.battles.tokenisation import TOKENIZER_FILE, BattleTokenizer, TokenisationSettings, read_tokenizer
from preference_core.ensemble.locations import read_json
from preference_core.ensemble.settings import Classifier

TOKENIZER_SETTINGS = "tokenizer_config.json"


def has_tokenizer(checkpoint: Path) -> bool:
    """Whether a checkpoint brings a tokenizer with its settings."""
    return all((checkpoint / name).is_file() for name in (TOKENIZER_FILE, TOKENIZER_SETTINGS))


def tokenizer_of_checkpoint(checkpoint: Path, member: Classifier) -> BattleTokenizer:
    """The tokenizer that serving will use for `member`, whose checkpoint's tokenizer is in the folder `checkpoint`."""
    return BattleTokenizer(read_tokenizer(checkpoint / TOKENIZER_FILE), settings_of_checkpoint(checkpoint, member))


def settings_of_checkpoint(checkpoint: Path, member: Classifier) -> TokenisationSettings:
    """The settings of `member` with the special tokens that its checkpoint's tokenizer names."""
    table = tokenizer_table(checkpoint)
    return TokenisationSettings(
        template=template_of(member.template),
        max_tokens=member.max_tokens,
        truncation=member.truncation,
        bos_token=_token_text(table.get("bos_token")),
        eos_token=_token_text(table.get("eos_token")),
    )


def tokenizer_table(checkpoint: Path) -> dict[str, Any]:
    """What `tokenizer_config.json` says, and the older `special_tokens_map.json` where that is silent."""
    older = checkpoint / "special_tokens_map.json"
    return {**(read_json(older) if older.exists() else {}), **read_json(checkpoint / TOKENIZER_SETTINGS)}


def _token_text(value: Any) -> str | None:
    """A special token of `tokenizer_config.json`: text, or a table with its `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
