"""Templates: how a battle becomes text, as data.

The strings are those that the published checkpoints were trained with, to the space. A template also says which special
tokens surround the text; the tokenizer decides which ids these are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from preference_core.battles.battle import Battle
from preference_core.errors import ConfigError, nearest
from preference_core.tensors import FIELDS


@dataclass(frozen=True)
class Piece:
    """One field of a battle and the literal text in front of it."""

    literal: str
    field: str


@dataclass(frozen=True)
class Template:
    """Pieces in order; `add_bos` and `add_eos` say which special tokens stand around the whole text."""

    name: str
    pieces: tuple[Piece, Piece, Piece]
    add_bos: bool
    add_eos: bool
    turn_separator: str = " "

    def field_texts(self, battle: Battle) -> dict[str, str]:
        """The text of each field: its turns, joined."""
        return {field: self.turn_separator.join(getattr(battle, field)) for field in FIELDS}

    def join(self, texts: Mapping[str, str]) -> str:
        """The whole text for one text per field."""
        return "".join(piece.literal + texts[piece.field] for piece in self.pieces)

    def render(self, battle: Battle) -> str:
        """The whole text of a battle, without special tokens."""
        return self.join(self.field_texts(battle))


def _pieces(prompt: str, response_a: str, response_b: str) -> tuple[Piece, Piece, Piece]:
    return Piece(prompt, "prompt"), Piece(response_a, "response_a"), Piece(response_b, "response_b")


TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template(
            "gemma",
            _pieces("<prompt>: ", "\n\n<response_a>: ", "\n\n<response_b>: "),
            add_bos=True,
            add_eos=True,
        ),
        Template(
            "llama",
            _pieces("User prompt: ", "\n\nModel A :\n", "\n\n--------\n\nModel B:\n"),
            add_bos=True,
            add_eos=False,
        ),
        Template(
            "qwen",
            _pieces("<User prompt>: ", "\n\n<response_a>: ", "\n\n<response_b>: "),
            add_bos=False,
            add_eos=False,
        ),
    )
}


def template_named(name: str) -> Template:
    """The template called `name`, or a `ConfigError` that names the nearest one."""
    try:
        return TEMPLATES[name]
    except KeyError as error:
        raise ConfigError(f"Unknown template `{name}`", hint=nearest(name, TEMPLATES)) from error
