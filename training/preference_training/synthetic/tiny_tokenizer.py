"""Small tokenizers with the pipelines of Gemma, Llama-3, Mistral and Qwen, trained on given text.

Everything but the vocabulary is as in the published `tokenizer.json` files: normaliser, pre-tokeniser, byte handling,
special tokens and their order, post-processor. What holds for these tokenizers therefore holds for the real ones.
"""

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from preference_core.errors import ConfigError

Family = Literal["gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"]

LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

GEMMA_CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
GEMMA_TURNS = ("<start_of_turn>", "<end_of_turn>")
#: Gemma's own whole tokens for runs of white space: in the vocabulary, matched before merging, not special.
GEMMA_RUNS = (*("\n" * n for n in range(1, 5)), *("▁" * n for n in range(2, 5)))
#: Of tokenizers made by SentencePiece: what characters without a piece become.
PIECE_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

MISTRAL_CONTROL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")

LLAMA_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TinyTokenizer:
    """A trained tokenizer and the settings of its `tokenizer_config.json`."""

    tokenizer: Tokenizer
    settings: Mapping[str, Any]

    def token_id(self, setting: str) -> int | None:
        """The id of `bos_token`, `eos_token` or `pad_token`; None where the family has none."""
        token = self.settings[setting]
        found: int | None = self.tokenizer.token_to_id(token) if token is not None else None
        return found

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: self.settings[name] for name in names if self.settings.get(name) is not None}
        for name, table in (("tokenizer_config.json", self.settings), ("special_tokens_map.json", special)):
            (folder / name).write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def train_tokenizer(family: Family, texts: Iterable[str], vocabulary_size: int) -> TinyTokenizer:
    """A tokenizer of `family` with at most `vocabulary_size` entries, special tokens included."""
    gemma, qwen = (_gemma, len(_gemma_fixed())), (_qwen, 256 + len(QWEN_SPECIAL))
    trainers = {
        "gemma2": gemma,
        "gemma3_text": gemma,
        "llama": (_llama, 256 + len(LLAMA_SPECIAL)),
        "mistral": (_mistral, len(MISTRAL_CONTROL) + len(PIECE_BYTES)),
        "qwen2": qwen,
        "qwen3": qwen,
    }
    train, fixed = trainers[family]
    if vocabulary_size <= fixed:
        raise ConfigError(f"`vocabulary_size` is {vocabulary_size}, a {family} tokenizer needs over {fixed}")
    return train(texts, vocabulary_size)


def _gemma_fixed() -> tuple[str, ...]:
    return (*GEMMA_CONTROL, *GEMMA_TURNS, *GEMMA_RUNS, *PIECE_BYTES)


def _sentence_piece(texts: Iterable[str], vocabulary_size: int, fixed: tuple[str, ...]) -> Tokenizer:
    """One piece per character or merge, a space is `▁`, unknown characters become bytes.

    Trained with a split before each `▁` and around line breaks, as SentencePiece does; the finished pipeline has no
    such split, because no merge crosses one.
    """
    learner = Tokenizer(BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex(r"\n+|\p{N}|[^\p{L}\p{M}\p{N}▁\n]+"), "isolated"),
        ]
    )
    learned, merges = _learn(learner, texts, vocabulary_size - len(fixed), list(string.printable[:95]))
    pieces = [*fixed, *(piece for piece in learned if piece not in set(fixed))]
    return Tokenizer(
        BPE(
            {piece: index for index, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )


def _mistral(texts: Iterable[str], vocabulary_size: int) -> TinyTokenizer:
    """Mistral 7B: as SentencePiece wrote it, with a space before the text."""
    tokenizer = _sentence_piece(texts, vocabulary_size, (*MISTRAL_CONTROL, *PIECE_BYTES))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", MISTRAL_CONTROL.index("<s>"))]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in MISTRAL_CONTROL])
    return TinyTokenizer(
        tokenizer, _settings("PreTrainedTokenizerFast", bos="<s>", eos="</s>", pad="</s>", unk="<unk>")
    )


def _gemma(texts: Iterable[str], vocabulary_size: int) -> TinyTokenizer:
    """Gemma: as SentencePiece wrote it, without a space before the text."""
    tokenizer = _sentence_piece(texts, vocabulary_size, _gemma_fixed())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", GEMMA_CONTROL.index("<bos>"))]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*GEMMA_CONTROL, *GEMMA_TURNS)]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in GEMMA_RUNS])
    settings = _settings("GemmaTokenizer", bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")
    return TinyTokenizer(tokenizer, {**settings, "add_bos_token": True, "add_eos_token": False})


def _llama(texts: Iterable[str], vocabulary_size: int) -> TinyTokenizer:
    """Llama-3: bytes, split by its regular expression; whole words of the vocabulary are taken before any merge."""
    tokenizer = _byte_level(texts, vocabulary_size, LLAMA_SPLIT, LLAMA_SPECIAL, ignore_merges=True)
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
            ),
        ]
    )
    eos = "<|eot_id|>"  # of the Instruct models; they have no pad token of their own, so training pads with eos
    return TinyTokenizer(tokenizer, _settings("PreTrainedTokenizerFast", bos=bos, eos=eos, pad=eos, unk=None))


def _qwen(texts: Iterable[str], vocabulary_size: int) -> TinyTokenizer:
    """Qwen2: bytes of the NFC form, digits one by one, no bos."""
    tokenizer = _byte_level(texts, vocabulary_size, QWEN_SPLIT, QWEN_SPECIAL, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>"
    return TinyTokenizer(tokenizer, _settings("Qwen2Tokenizer", bos=None, eos=end, pad=end, unk=None))


def _byte_level(
    texts: Iterable[str], vocabulary_size: int, split: str, special: tuple[str, ...], *, ignore_merges: bool
) -> Tokenizer:
    pipeline = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pipeline
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned, merges = _learn(learner, texts, vocabulary_size - len(special), alphabet)
    tokenizer = Tokenizer(BPE({piece: i for i, piece in enumerate(learned)}, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pipeline
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _learn(
    learner: Tokenizer, texts: Iterable[str], vocabulary_size: int, alphabet: list[str]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces in the order of their ids, and merges in the order of their rank."""
    trainer = BpeTrainer(vocab_size=vocabulary_size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    pieces: dict[str, int] = model["vocab"]
    return sorted(pieces, key=pieces.__getitem__), [(left, right) for left, right in model["merges"]]


def _settings(kind: str, *, bos: str | None, eos: str, pad: str, unk: str | None) -> dict[str, Any]:
    tokens = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    return {
        "tokenizer_class": kind,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "padding_side": "right",
        **tokens,
    }
