"""What the texts of a row hold: lists of turns, or plain text.

A list may be JSON, as published, or what pandas and NumPy write for one: `['a', "it's"]`, `['a' None]`. It counts only
if it is one from its first to its last character: `[INST] Hi` and `[1, 2] reversed?` are plain text.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from preference_core.errors import BattleError
from preference_core.tensors import FIELDS

Turns = tuple[str, ...]

#: What pandas, Python, JSON, SQL and R write where a value is missing.
MISSING = frozenset(("nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "\\N"))

_ITEM = r"""(?:'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+"|None|nan|null|NaN)"""
_LISTS = [
    re.compile(rf"\s*\[\s*{_ITEM}(?:{separator}{_ITEM})*+\s*\]\s*", re.DOTALL)
    for separator in (r"\s*,\s*", r"\s+")  # Python's, NumPy's
]
_OTHER_BRACKETS = (("array([", ")"), ("('", ")"), ('("', ")"), ('"[', '"'))
_CUT = ('["', "['", "[null", "[None", "[nan", "[NaN")


def turns_of_cells(cells: Mapping[str, str]) -> dict[str, Turns]:
    """The turns of a row's texts by field: all texts that are not blank are lists, or each is one turn.

    An answer may happen to be a list. Raises `BattleError` where texts are not what they seem: see `docs/decisions.md`.
    """
    texts = {field: text for field, text in cells.items() if text.strip()}
    for field, text in texts.items():
        if text.strip() in MISSING:
            raise BattleError(
                field,
                f"is `{text.strip()}`, as if it were missing",
                hint=f'Leave it empty; if the text is meant, write the row as JSON lists: `["{text.strip()}"]`.',
            )
    lists = {field: turns_of_text(text) for field, text in texts.items()}
    plain = [field for field, turns in lists.items() if turns is None]
    if not plain:
        return {field: lists.get(field) or (text,) for field, text in cells.items()}
    prompt, *responses = FIELDS
    if lists.get(prompt) is not None:
        raise BattleError(
            plain[0],
            "is not a JSON list of turns, but `prompt` is",
            hint="Write all three fields of a row as JSON lists of turns.",
        )
    if prompt in texts and len(texts) > 1 and all(map(_looks_like_a_list, texts.values())):
        raise _ambiguous("is in brackets, as are the responses, but it is not a list of turns")
    if prompt in texts and all(len(lists.get(field) or ()) == 1 for field in responses):
        raise _ambiguous("is not a JSON list of turns, but both responses are")
    return {field: (text,) for field, text in cells.items()}


def turns_of_text(text: str) -> Turns | None:
    """The turns of a text that is a list of texts and missing values, None for any other text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        turns = _python_list(text)
    if not isinstance(turns, list) or not all(isinstance(turn, str) or _is_missing(turn) for turn in turns):
        return None
    return tuple("" if _is_missing(turn) else turn for turn in turns) or ("",)


def _python_list(text: str) -> list[str | None] | None:
    """The items of a list as Python or NumPy writes it, None for any other text; a missing item is None."""
    if not any(pattern.fullmatch(text) for pattern in _LISTS):
        return None
    items = re.findall(_ITEM, text, re.DOTALL)
    return [None if item[0] in "nN" else str(ast.literal_eval(item)) for item in items]


def _is_missing(turn: Any) -> bool:
    return turn is None or turn != turn  # NaN alone differs from itself


def _looks_like_a_list(text: str) -> bool:
    """Whether a text is in brackets as a whole, or is the start of a list without its end: it was cut."""
    text = text.strip()
    ends = text[0] + text[-1]
    if ends == "{}":  # an array of PostgreSQL, if it is not an object of JSON
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return True
    is_whole = ends == "[]" or any(text.startswith(start) and text.endswith(end) for start, end in _OTHER_BRACKETS)
    return is_whole or (text.startswith(_CUT) and not any(pattern.match(text) for pattern in _LISTS))


def _ambiguous(message: str) -> BattleError:
    return BattleError(
        FIELDS[0],
        message,
        hint='Write the row\'s texts as JSON lists of turns: `["Hi"]`, and `["[1, 2]"]` where brackets are meant.',
    )
