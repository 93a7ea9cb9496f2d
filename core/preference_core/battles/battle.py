"""A battle: one prompt of one or more turns, and two responses with as many turns.

Refuses what no tokenizer can read. `cells` says what the texts of a file hold; it knows nothing of templates or models.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from preference_core.battles.cells import Turns, turns_of_cells, turns_of_text
from preference_core.errors import BattleError
from preference_core.tensors import FIELDS

InvalidText = Literal["error", "replace"]

#: Battles that a rule may answer instead of the models; the first entry is every other battle.
SPECIAL_CASES = ("ordinary", "identical_responses", "empty_response_a", "empty_response_b")

#: Lone surrogates are not valid UTF-8, and tokenizers refuse them; NUL ends strings in too many places.
UNREADABLE = re.compile("[\ud800-\udfff\0]")
REPLACEMENT_CHARACTER = "\ufffd"


@dataclass(frozen=True)
class Battle:
    """Turns of the prompt and of both responses; all three have the same number of turns, at least one."""

    prompt: Turns
    response_a: Turns
    response_b: Turns

    def swapped(self) -> "Battle":
        """The same battle with its responses exchanged."""
        return replace(self, response_a=self.response_b, response_b=self.response_a)

    def special_case(self) -> str:
        """Which of `SPECIAL_CASES` this battle is. Text of white space alone counts as empty."""
        empty_a, empty_b = (not any(map(str.strip, turns)) for turns in (self.response_a, self.response_b))
        if self.response_a == self.response_b or (empty_a and empty_b):
            return "identical_responses"
        if empty_a:
            return "empty_response_a"
        return "empty_response_b" if empty_b else "ordinary"

    def last_turns(self, turns: int) -> "Battle":
        """The last `turns` turns (at least one) of the same battle."""
        return Battle(self.prompt[-turns:], self.response_a[-turns:], self.response_b[-turns:])


def swapped_label_order(labels: Sequence[str]) -> tuple[int, ...]:
    """For each label, the index of the label that means the same once the responses are exchanged.

    `winner_model_a` and `winner_model_b` (or `model_a` and `model_b`, `A` and `B`) trade places; every other label, a
    tie for instance, stays. Raises `ValueError` where no two labels trade places by their names: to leave each where it
    is would give both orders the same meaning.
    """
    other = {"a": "b", "b": "a", "A": "B", "B": "A"}
    partner = {label: label for label in labels}
    for label in labels:
        if label.rpartition("_")[2] in other:
            partner[label] = label[:-1] + other[label[-1]]
    missing = [label for label in labels if partner[label] not in partner]
    if missing:
        raise ValueError(f"label `{missing[0]}` has no counterpart `{partner[missing[0]]}` among {list(labels)}")
    if all(partner[label] == label for label in labels):
        raise ValueError(f"labels are {list(labels)}; none of them says `a` or `b` as its last word, as `model_a` does")
    return tuple(list(labels).index(partner[label]) for label in labels)


def battle_from_row(row: Mapping[str, Any], invalid_text: InvalidText = "error") -> Battle:
    """Reads the columns `prompt`, `response_a` and `response_b` of a row of any published file format.

    A value may be a list of turns, a text that is one (`cells`), or plain text, which is one turn. `invalid_text` says
    what happens to lone surrogates and NUL characters: "error" raises `BattleError`, "replace" puts U+FFFD in their
    place.
    """
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise BattleError(missing[0], f"is missing; found {', '.join(map(repr, row)) or 'no columns'}")
    turns = turns_of_cells({field: row[field] for field in FIELDS if isinstance(row[field], str)})
    prompt, response_a, response_b = (
        turns[field] if field in turns else _turns_of_value(row[field], field) for field in FIELDS
    )
    return battle_from_turns(prompt, response_a, response_b, invalid_text)


def battle_from_turns(
    prompt: Sequence[str], response_a: Sequence[str], response_b: Sequence[str], invalid_text: InvalidText = "error"
) -> Battle:
    """Validates turns and makes a battle. An empty list means one empty turn.

    Refuses what only looks like turns: a list of turns in one text, and turns that are empty in all three fields.
    """
    fields = dict(zip(FIELDS, (prompt, response_a, response_b), strict=True))
    clean = {
        field: tuple(_clean(turn, field, invalid_text) for turn in turns) or ("",) for field, turns in fields.items()
    }
    turns = len(clean["prompt"])
    for field in FIELDS[1:]:
        if len(clean[field]) != turns:
            raise BattleError(field, f"has {len(clean[field])} turns, `prompt` has {turns}; they must be equal")
    battle = Battle(**clean)
    if turns > 1:
        for number, texts in enumerate(zip(*clean.values(), strict=True), start=1):
            if not any(texts):
                what = f"and both responses are empty in turn {number} of {turns}"
                raise BattleError("prompt", what, hint="Leave out turns that only fill up.")
    elif turns_of_text(battle.prompt[0]) is not None:
        responses = [text for text in battle.response_a + battle.response_b if text.strip()]
        if responses and all(map(turns_of_text, responses)):
            what = "is a list of turns in one text, and so are the responses"
            raise BattleError("prompt", what, hint="Give each turn as a text of its own.")
    return battle


def _turns_of_value(value: Any, field: str) -> Turns:
    """Turns of one field that is not text; `null` turns are empty text."""
    if value is None:
        return ("",)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        wrong = [turn for turn in value if not (turn is None or isinstance(turn, str))]
        if wrong:
            raise BattleError(field, f"holds a turn of type {type(wrong[0]).__name__}, expected text or null")
        return tuple(turn or "" for turn in value)
    raise BattleError(field, f"is {type(value).__name__}, expected text or a list of turns")


def _clean(turn: str, field: str, invalid_text: InvalidText) -> str:
    found = None if turn.isascii() and "\0" not in turn else UNREADABLE.search(turn)
    if found is None:
        return turn
    if invalid_text == "replace":
        return UNREADABLE.sub(REPLACEMENT_CHARACTER, turn)
    character = found.group()
    what = "a NUL character" if character == "\0" else f"a lone surrogate (U+{ord(character):04X})"
    raise BattleError(field, f"holds {what} at character {found.start()}", hint="Remove it, or replace it by U+FFFD.")
