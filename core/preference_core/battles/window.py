"""Encodes only as much of a long text as decides its first (or last) tokens.

The tokenizer of a 10 MB text is then as cheap as that of a page. A window grows until it yields the tokens wanted and
a guard beyond them: how a text is cut changes only tokens near the cut, and those are the guard's.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from preference_core.errors import BattleError

#: First size of a window, in characters per wanted token; natural text has 2 to 5.
_CHARACTERS_PER_TOKEN = 8
#: Texts encoded side by side.
_BATCH_TEXTS = 1024
#: Tokens next to a cut that are not trusted.
_GUARD_TOKENS = 64
#: No supported vocabulary has a longer token; Llama-3's longest is 128 spaces.
_LONGEST_TOKEN_CHARACTERS = 128
#: A place where every supported tokenizer starts a new token whatever stands before it: a space between two letters.
_BOUNDARY = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokens of the characters `start` to `end` of a text of `length` characters; no special tokens."""

    encoding: Encoding
    start: int
    end: int
    length: int

    @cached_property
    def ids(self) -> npt.NDArray[np.int32]:
        """Token ids INT32 `[tokens]`."""
        return np.array(self.encoding.ids, dtype=np.int32)

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """First character and end of each token in the whole text, INT64 `[tokens, 2]`."""
        return np.array(self.encoding.offsets, dtype=np.int64).reshape(-1, 2) + self.start

    @property
    def is_whole(self) -> bool:
        """Whether all of the text was encoded."""
        return self.end - self.start == self.length

    def head(self, text: str, tokens: int) -> str:
        """The text of the first `tokens` tokens; all of it where there are no more."""
        if tokens >= len(self.ids) and self.is_whole:
            return text
        return text[: int(self.offsets[tokens - 1, 1])] if tokens else ""

    def tokens_of_characters(self, characters: int) -> int:
        """Estimated tokens of `characters` more characters, at this window's ratio, rounded up."""
        return math.ceil(characters * len(self.ids) / max(self.end - self.start, 1))

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole text: exact if it was encoded whole, else estimated."""
        return len(self.ids) + self.tokens_of_characters(self.length - (self.end - self.start))


class Window:
    """A tokenizer without special tokens; `read_tokenizer` leaves it no truncation or padding either."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        own = Tokenizer.from_str(tokenizer.to_str())
        # Special tokens are added by the template, and byte-level post-processors would trim spaces off the offsets.
        own.post_processor = None
        self._tokenizer = own

    def whole(self, texts: Sequence[str], most: int) -> list[npt.NDArray[np.int32] | None]:
        """Ids of each text that has at most `most` tokens; None for every other text."""
        limit = most * _CHARACTERS_PER_TOKEN
        short = [index for index, text in enumerate(texts) if len(text) <= limit]
        found: list[npt.NDArray[np.int32] | None] = [None] * len(texts)
        # An encoding takes some hundred bytes per token, so only those of one batch are in memory.
        for start in range(0, len(short), _BATCH_TEXTS):
            batch = short[start : start + _BATCH_TEXTS]
            encodings = self._tokenizer.encode_batch_fast([texts[i] for i in batch], add_special_tokens=False)
            for index, encoding in zip(batch, encodings, strict=True):
                if len(encoding) <= most:
                    found[index] = np.array(encoding.ids, dtype=np.int32)
        return found

    def prefix(self, text: str, wanted: int) -> Encoded:
        """Encodes enough of the beginning that its first `wanted` tokens are those of the whole text."""
        size = wanted * _CHARACTERS_PER_TOKEN
        while size < len(text):
            encoding = self._encode(text[:size])
            if len(encoding) >= wanted + _GUARD_TOKENS:
                return Encoded(encoding, 0, size, len(text))
            size *= 2
        return Encoded(self._encode(text), 0, len(text), len(text))

    def suffix(self, text: str, wanted: int) -> Encoded:
        """Encodes enough of the end that its last `wanted` tokens are those of the whole text.

        Text without two words in `wanted` times the longest token is cut where it happens to be: a megabyte of digits
        may then be grouped differently than from its beginning.
        """
        size = wanted * _CHARACTERS_PER_TOKEN
        while size < len(text):
            boundary = _BOUNDARY.search(text, len(text) - size)
            if boundary is not None or size >= wanted * _LONGEST_TOKEN_CHARACTERS:
                start = len(text) - size if boundary is None else boundary.start()
                encoding = self._encode(text[start:])
                if len(encoding) >= wanted + _GUARD_TOKENS:
                    return Encoded(encoding, start, len(text), len(text))
            size *= 2
        return Encoded(self._encode(text), 0, len(text), len(text))

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise BattleError("text", f"of {len(text)} characters is too much for the tokenizer: {error}") from error


def shared(lengths: Sequence[int], shares: Sequence[int], available: int) -> list[int]:
    """How much of each length is kept so that the sum is at most `available`.

    Room is divided in the ratio `shares`; what a short length does not need goes to the others.
    """
    kept = list(lengths)
    open_ = [index for index, share in enumerate(shares) if share > 0]
    while open_:
        parts = sum(shares[index] for index in open_)
        fitting = [index for index in open_ if lengths[index] * parts <= available * shares[index]]
        if not fitting:
            for index in open_:
                kept[index] = available * shares[index] // parts
            break
        for index in fitting:
            available -= lengths[index]
            open_.remove(index)
    return kept
