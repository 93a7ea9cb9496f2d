"""Templates: how a battle becomes text, as data.

The presets' strings are those that the published checkpoints were trained with, to the space. A template also says
which special tokens surround the text; the tokenizer decides which ids these are.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from preference_core.battles.battle import Battle
from preference_core.errors import ConfigError, nearest
from preference_core.structure import plain
from preference_core.tensors import FIELDS

_FIELD = re.compile(rf"\{{({'|'.join(FIELDS)})\}}")


@dataclass(frozen=True)
class Piece:
    """One field of a battle and the literal text in front of it."""

    literal: str
    field: str


@dataclass(frozen=True)
class Template:
    """How a battle becomes text, and which special tokens stand round it."""

    text: str  #: has `{prompt}`, `{response_a}` and `{response_b}` once each; all else is literal, other braces too
    add_bos: bool  #: whether the bos token comes first
    add_eos: bool  #: whether the eos token comes last
    turn_separator: str = " "  #: between the turns of a field

    def __post_init__(self) -> None:
        found = _FIELD.findall(self.text)
        for name in FIELDS:
            if found.count(name) != 1:
                raise ConfigError(
                    f"`text` of the template has `{{{name}}}` {found.count(name)} times, expected once",
                    hint="For example `Prompt: {prompt}\\nA: {response_a}\\nB: {response_b}`.",
                )

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The fields in the order of the text."""
        parts = _FIELD.split(self.text)
        return tuple(Piece(*pair) for pair in zip(parts[:-1:2], parts[1::2], strict=True))

    @cached_property
    def ending(self) -> str:
        """The literal text after the last field."""
        return _FIELD.split(self.text)[-1]

    def field_texts(self, battle: Battle) -> dict[str, str]:
        """The text of each field: its turns, joined."""
        return {field: self.turn_separator.join(getattr(battle, field)) for field in FIELDS}

    def join(self, texts: Mapping[str, str]) -> str:
        """The whole text for one text per field."""
        return "".join(piece.literal + texts[piece.field] for piece in self.pieces) + self.ending

    def render(self, battle: Battle) -> str:
        """The whole text of a battle, without special tokens."""
        return self.join(self.field_texts(battle))

    def toml(self) -> str:
        """The template as a configuration has it: the name of a preset, or a table."""
        name = next((name for name, preset in PRESETS.items() if preset == self), None)
        return self.table() if name is None else f'"{name}"'

    def table(self) -> str:
        """The template as a table of a configuration, which shows all of it."""
        return f"{{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in plain(self).items())} }}"


PRESETS: Mapping[str, Template] = {
    "gemma": Template(
        "<prompt>: {prompt}\n\n<response_a>: {response_a}\n\n<response_b>: {response_b}", add_bos=True, add_eos=True
    ),
    "llama": Template(
        "User prompt: {prompt}\n\nModel A :\n{response_a}\n\n--------\n\nModel B:\n{response_b}",
        add_bos=True,
        add_eos=False,
    ),
    "qwen": Template(
        "<User prompt>: {prompt}\n\n<response_a>: {response_a}\n\n<response_b>: {response_b}",
        add_bos=False,
        add_eos=False,
    ),
}


def template_of(given: str | Template) -> Template:
    """A template as the configuration gives it: the name of a preset, or its own data."""
    if isinstance(given, Template):
        return given
    try:
        return PRESETS[given]
    except KeyError as error:
        raise ConfigError(
            f"Unknown template `{given}`",
            hint=f"{nearest(given, PRESETS)} Or give your own: "
            "`template = { text = ..., add_bos = ..., add_eos = ... }`.",
        ) from error
