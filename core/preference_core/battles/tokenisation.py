"""From a battle to the token ids of one member: template, budgets, truncation.

Ids equal those of the Hugging Face tokenizer on the joined text. What does not fit is cut by a policy and counted per
field. It uses `tokenizer.json` alone, and knows nothing of models or servers.

Policies:
- `right` keeps the first tokens of the joined text, `left` the last ones (Hugging Face's truncation sides).
- `middle` gives each field a budget, keeps the first and last half of it round a mark, then cuts like `right`.
- `longest_first` shortens the longest fields, from their ends, to one common length that fits.
- `turns` keeps the last turns that fit whole, and shares what room is left among the fields of the turn before them
  (one part for the prompt, two for each response).
- `spread` encodes each field with the literal before it on its own, special tokens and budget included, and joins ids.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.battles.battle import Battle
from preference_core.battles.template import Template, template_of
from preference_core.battles.truncation import Truncation
from preference_core.battles.window import Encoded, Window, shared
from preference_core.errors import ArtefactError, BattleError, ConfigError
from preference_core.structure import plain, structure
from preference_core.tensors import FIELDS

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenisation.json"

#: Tries to shorten fields until the joined text fits; each removes what the last one had too much.
_FITTING_ROUNDS = 8


@dataclass(frozen=True)
class TokenisationSettings:
    """How one member reads a battle; travels beside its `tokenizer.json`. Tokens are given as text.

    `embedding_rows` is how many ids the model knows: a tokenizer may have more, for images say.
    """

    template: str | Template
    max_tokens: int
    truncation: Truncation = field(default_factory=Truncation)
    bos_token: str | None = None
    eos_token: str | None = None
    embedding_rows: int | None = None

    def __post_init__(self) -> None:
        if self.truncation.policy == "spread":
            total = sum(self.truncation.budget(name, self.max_tokens) for name in FIELDS)
            if total > self.max_tokens:
                raise ConfigError(f"The budgets of `spread` add up to {total}, `max_tokens` is {self.max_tokens}")


@dataclass(frozen=True, eq=False)
class TokenisedBattle:
    """`ids` INT32 `[tokens]`; `dropped` has the number of tokens cut from each of `FIELDS`.

    A count is exact for a text of up to 8 characters per token of `max_tokens`. What lies beyond the part that had to
    be read is counted at that part's ratio of tokens to characters, rounded up: never 0 when text was cut.
    """

    ids: npt.NDArray[np.int32]
    dropped: tuple[int, int, int]


class BattleTokenizer:
    """Tokenises battles for one member. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, settings: TokenisationSettings) -> None:
        self.settings = settings
        self._tokenizer = tokenizer
        self.template = template_of(settings.template)
        self._window = Window(tokenizer)
        self._prefix = self._special(tokenizer, "bos", settings.bos_token, self.template.add_bos)
        self._suffix = self._special(tokenizer, "eos", settings.eos_token, self.template.add_eos)
        self._specials = len(self._prefix) + len(self._suffix)
        self._room = settings.max_tokens - self._specials
        if settings.truncation.policy == "spread":
            self._check_budgets()

    @classmethod
    def from_folder(cls, folder: Path) -> "BattleTokenizer":
        """Reads `tokenizer.json` and `tokenisation.json` of a folder."""
        for name in (TOKENIZER_FILE, SETTINGS_FILE):
            if not (folder / name).is_file():
                raise ArtefactError(f"`{folder}` has no {name}", hint="Make it with `preference-export`.")
        settings = structure(TokenisationSettings, json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")))
        return cls(read_tokenizer(folder / TOKENIZER_FILE), settings)

    def with_settings(self, settings: TokenisationSettings) -> "BattleTokenizer":
        """The same tokenizer that reads battles in another way."""
        return BattleTokenizer(self._tokenizer, settings)

    def text_of(self, number: int) -> str:
        """One id as text."""
        text: str = self._tokenizer.decode([number], skip_special_tokens=False)
        return text

    def encode(self, battle: Battle) -> TokenisedBattle:
        """Ids of one battle, at most `max_tokens`, special tokens included."""
        return self.encode_batch([battle])[0]

    def encode_batch(self, battles: Sequence[Battle]) -> list[TokenisedBattle]:
        """Ids of several battles; each result is the same as when encoded alone.

        Raises `BattleError` for a text that spells a token which the model does not know.
        """
        encoded = self._encoded(battles)
        for battle, tokens in zip(battles, encoded, strict=True):
            self._check_known(battle, tokens.ids)
        return encoded

    def _check_known(self, battle: Battle, ids: npt.NDArray[np.int32]) -> None:
        rows = self.settings.embedding_rows
        if rows is None or not ids.size or (largest := int(ids.max())) < rows:
            return
        token = self._tokenizer.id_to_token(largest)
        holders = (name for name in FIELDS if any(token in turn for turn in getattr(battle, name)))
        raise BattleError(
            next(holders, FIELDS[0]),
            f"spells the token `{token}`, whose id {largest} is beyond the {rows} rows of the model's embedding",
        )

    def _encoded(self, battles: Sequence[Battle]) -> list[TokenisedBattle]:
        if self.settings.truncation.policy in ("middle", "spread"):
            return [self._shortened(battle) for battle in battles]
        whole = self._window.whole([self.template.render(battle) for battle in battles], self._room)
        return [
            self._shortened(battle) if ids is None else self._result(ids, (0, 0, 0))
            for battle, ids in zip(battles, whole, strict=True)
        ]

    def _shortened(self, battle: Battle) -> TokenisedBattle:
        policy, texts = self.settings.truncation.policy, self.template.field_texts(battle)
        if policy == "turns":
            return self._last_turns(battle)
        if policy == "spread":
            return self._spread(texts)
        if policy == "middle":
            return self._middle(texts)
        if policy == "longest_first":
            return self._cut_joined(*self._fitted(texts, (1, 1, 1), lambda shortened: shortened))
        return self._cut_joined(texts, from_left=policy == "left")

    def _cut_joined(
        self, texts: Mapping[str, str], already_dropped: Sequence[int] = (0, 0, 0), from_left: bool = False
    ) -> TokenisedBattle:
        """Keeps the first (or last) tokens of the joined text that fit."""
        text = self.template.join(texts)
        encoded = self._window.suffix(text, self._room) if from_left else self._window.prefix(text, self._room)
        excess = max(len(encoded.ids) - self._room, 0)
        if excess == 0 and encoded.is_whole:
            return self._result(encoded.ids, already_dropped)
        kept, gone = (
            (encoded.ids[excess:], slice(0, excess))
            if from_left
            else (encoded.ids[: self._room], slice(self._room, None))
        )
        dropped = self._dropped_by_field(texts, encoded, gone)
        return self._result(kept, [a + d for a, d in zip(already_dropped, dropped, strict=True)])

    def _dropped_by_field(self, texts: Mapping[str, str], encoded: Encoded, gone: slice) -> list[int]:
        """Tokens of `gone`, and of the text that was never encoded, by the field in which they end."""
        ends = encoded.offsets[gone, 1]
        counts, position = [], 0
        for piece in self.template.pieces:
            start = position + len(piece.literal)
            position = start + len(texts[piece.field])
            inside = int(((ends > start) & (ends <= position)).sum())
            unread = max(0, min(position, encoded.start) - start) + max(0, position - max(start, encoded.end))
            counts.append(inside + encoded.tokens_of_characters(unread))
        return counts

    def _middle(self, texts: Mapping[str, str]) -> TokenisedBattle:
        truncation, cut, dropped = self.settings.truncation, {}, []
        for name in FIELDS:
            budget = truncation.budget(name, self.settings.max_tokens)
            encoded = self._window.prefix(texts[name], budget)
            if encoded.total_tokens <= budget:
                cut[name] = texts[name]
                dropped.append(0)
                continue
            head = budget // 2
            tail = self._window.suffix(texts[name], budget - head)
            tail_start = int(tail.offsets[len(tail.ids) - (budget - head), 0])
            cut[name] = encoded.head(texts[name], head) + truncation.mark + texts[name][tail_start:]
            dropped.append(encoded.total_tokens - budget)
        return self._cut_joined(cut, dropped)

    def _last_turns(self, battle: Battle) -> TokenisedBattle:
        turns = len(battle.prompt)
        kept = 0
        while kept < turns and self._tokens(self.template.field_texts(battle.last_turns(kept + 1))) <= self._room:
            kept += 1
        if kept == turns:
            return self._cut_joined(self.template.field_texts(battle))
        rest = self.template.field_texts(battle.last_turns(kept)) if kept else None
        overflowing = {name: getattr(battle, name)[turns - kept - 1] for name in FIELDS}

        def joined(shortened: Mapping[str, str]) -> Mapping[str, str]:
            if rest is None:
                return shortened
            return {name: self.template.turn_separator.join((shortened[name], rest[name])) for name in FIELDS}

        cut, dropped = self._fitted(overflowing, (1, 2, 2), joined)
        earlier = (self.template.turn_separator.join(getattr(battle, name)[: turns - kept - 1]) for name in FIELDS)
        gone = [self._window.prefix(text, self._room).total_tokens for text in earlier]
        return self._cut_joined(joined(cut), [d + g for d, g in zip(dropped, gone, strict=True)])

    def _fitted(
        self,
        texts: Mapping[str, str],
        shares: Sequence[int],
        joined: Callable[[Mapping[str, str]], Mapping[str, str]],
    ) -> tuple[Mapping[str, str], list[int]]:
        """Shortens `texts` from their ends so that `joined` of them fits; room is shared in the ratio `shares`."""
        encoded = {name: self._window.prefix(texts[name], self._room) for name in FIELDS}
        totals = [encoded[name].total_tokens for name in FIELDS]
        available = max(self._room - self._tokens(joined(dict.fromkeys(FIELDS, ""))), 0)
        for _ in range(_FITTING_ROUNDS):
            kept = shared(totals, shares, available)
            cut = {name: encoded[name].head(texts[name], n) for name, n in zip(FIELDS, kept, strict=True)}
            excess = self._tokens(joined(cut)) - self._room
            if excess <= 0:
                break
            available = max(available - excess, 0)
        return cut, [total - k for total, k in zip(totals, kept, strict=True)]

    def _tokens(self, texts: Mapping[str, str]) -> int:
        """Tokens of the joined text: exact up to the room there is, and above it whenever the text does not fit."""
        return len(self._window.prefix(self.template.join(texts), self._room).ids)

    def _spread(self, texts: Mapping[str, str]) -> TokenisedBattle:
        parts: list[npt.NDArray[np.int32]] = []
        dropped = []
        pieces = self.template.pieces
        for piece in pieces:
            text = piece.literal + texts[piece.field] + (self.template.ending if piece is pieces[-1] else "")
            room = self.settings.truncation.budget(piece.field, self.settings.max_tokens) - self._specials
            encoded = self._window.prefix(text, room)
            parts += [self._prefix, encoded.ids[:room], self._suffix]
            dropped.append(max(encoded.total_tokens - room, 0))
        return TokenisedBattle(np.concatenate(parts), _three(dropped))

    def _check_budgets(self) -> None:
        for piece in self.template.pieces:
            budget = self.settings.truncation.budget(piece.field, self.settings.max_tokens)
            literal = len(self._window.prefix(piece.literal, budget).ids)
            if budget <= self._specials + literal:
                raise ConfigError(
                    f"`spread` gives `{piece.field}` {budget} tokens; {self._specials} special ones and the {literal} "
                    f"of the template's words before it leave no room"
                )

    def _result(self, ids: npt.NDArray[np.int32], dropped: Sequence[int]) -> TokenisedBattle:
        return TokenisedBattle(np.concatenate([self._prefix, ids, self._suffix]), _three(dropped))

    def _special(self, tokenizer: Tokenizer, kind: str, token: str | None, wanted: bool) -> npt.NDArray[np.int32]:
        if not wanted:
            return np.empty(0, dtype=np.int32)
        number = None if token is None else tokenizer.token_to_id(token)
        if number is None:
            raise ArtefactError(
                f"The template needs a {kind} token; the tokenizer has no `{token}`",
                hint="Choose the template the checkpoint was trained with.",
            )
        return np.array([number], dtype=np.int32)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`, without the padding and truncation that training may have left in it.

    Raises `ArtefactError` when it is missing or cannot be read.
    """
    if not path.is_file():
        raise ArtefactError(
            f"`{path.parent}` has no {path.name}",
            hint="Save it with `AutoTokenizer.from_pretrained(...).save_pretrained(...)`.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain exceptions
        hint = pull_hint(path) or "Fetch or save it again."
        raise ArtefactError(f"`{path}` cannot be read: {error}", hint) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def write_tokenisation(folder: Path, checkpoint: Path, settings: TokenisationSettings) -> None:
    """Copies the checkpoint's `tokenizer.json` into `folder` and writes `tokenisation.json` beside it."""
    source = checkpoint / TOKENIZER_FILE
    BattleTokenizer(read_tokenizer(source), settings)
    shutil.copyfile(source, folder / TOKENIZER_FILE)
    text = json.dumps(plain(settings), indent=1, sort_keys=True, ensure_ascii=True)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third
