"""What turns a battle into the ids of one member, whichever kind of member it is: found by the files of its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from preference_core.battles.battle import Battle
from preference_core.battles.lengths import LENGTHS_FILE, LengthEncoder, read_buckets
from preference_core.battles.tokenisation import SETTINGS_FILE, TOKENIZER_FILE, BattleTokenizer, TokenisedBattle

#: Every file that an encoder may be read from.
ENCODER_FILES = (TOKENIZER_FILE, SETTINGS_FILE, LENGTHS_FILE)


class BattleEncoder(Protocol):
    """Battles in, ids out; each result is the same alone and among others."""

    def encode(self, battle: Battle) -> TokenisedBattle: ...

    def encode_batch(self, battles: Sequence[Battle]) -> list[TokenisedBattle]: ...


def encoder_from_folder(folder: Path) -> BattleEncoder:
    """The encoder of an exported member: length buckets where there are any, else its tokenizer."""
    if (folder / LENGTHS_FILE).is_file():
        return LengthEncoder(read_buckets(folder))
    return BattleTokenizer.from_folder(folder)
