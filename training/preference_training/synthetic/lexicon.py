"""The words that generated battles are made of: `lexicon.toml`, read into frozen dataclasses.

Holds text only; how battles are composed, and which answers win, is decided in `battles`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from preference_core.structure import structure

Texts = tuple[str, ...]


@dataclass(frozen=True)
class Patterns:
    """English sentence patterns with slots `{thing}`, `{action}` and `{reason}`, filled from one topic."""

    questions: Texts
    follow_ups: Texts
    helpful: Texts
    structured: Texts
    openers: Texts
    closers: Texts
    vague: Texts
    refusal: Texts


@dataclass(frozen=True)
class Topic:
    """What the slots of a pattern are filled with."""

    thing: Texts
    action: Texts
    reason: Texts


@dataclass(frozen=True)
class Phrases:
    """Whole sentences of another language, or of code."""

    questions: Texts
    helpful: Texts
    vague: Texts
    refusal: Texts


@dataclass(frozen=True)
class Edges:
    """Text that trips careless readers: emoji outside the basic plane, special-token strings, quotes and slashes."""

    emoji: Texts
    special_tokens: Texts
    awkward: Texts


@dataclass(frozen=True)
class Lexicon:
    """Everything that generated battles can say."""

    patterns: Patterns
    topics: Mapping[str, Topic]
    languages: Mapping[str, Phrases]
    code: Phrases
    edges: Edges


@cache
def lexicon() -> Lexicon:
    """The lexicon in the file beside this module."""
    text = files(__package__).joinpath("lexicon.toml").read_text(encoding="utf-8")
    return structure(Lexicon, tomllib.loads(text))
