"""Turns as the published files spell them."""

import json

RawTurns = tuple[str | None, ...]


def json_turns(turns: RawTurns) -> str:
    """Turns as the published files spell them: no spaces between, surrogate pairs escaped, `/` as `\\/`."""
    return json.dumps(turns, ensure_ascii=True, separators=(",", ":")).replace("/", "\\/")
