"""Battles as training examples: the ids that serving would make, labels, and batches padded to their longest.

Tokenisation itself is `preference_core`'s; this module knows nothing of models.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from preference_core.battles.battle import swapped_label_order
from preference_core.battles.tokenisation import BattleTokenizer, TokenisedBattle
from preference_core.ensemble.member_tokenizer import tokenizer_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.ensemble.special_tokens import check_special_tokens, voices_of
from preference_training.battles.identities import Identities
from preference_training.battles.rows import LabelledBattles
from preference_training.fit.battle_order import Example


def tokenizer_of(member: Classifier, checkpoint: Path) -> BattleTokenizer:
    """The tokenizer that serving will use for `member`. The checkpoint must put the same special tokens round text."""
    tokenizer = tokenizer_of_checkpoint(checkpoint, member)
    check_special_tokens(member, str(checkpoint), tokenizer.settings, voices_of(checkpoint, tokenizer.settings))
    return tokenizer


def encode(tokenizer: BattleTokenizer, data: LabelledBattles, labels: Sequence[str], swaps: bool) -> list[Example]:
    """One example per battle: `input_ids` and `labels`; with `swaps`, `swapped` is the example of the exchanged one."""
    examples = _examples(tokenizer.encode_batch(data.battles), data.targets.tolist())
    if swaps:
        partner = swapped_label_order(labels)
        exchanged = tokenizer.encode_batch([battle.swapped() for battle in data.battles])
        targets = [partner[target] for target in data.targets.tolist()]
        for example, swapped in zip(examples, _examples(exchanged, targets), strict=True):
            example["swapped"] = swapped
    return examples


def add_identities(examples: Sequence[Example], identities: Identities) -> None:
    """Gives every example of the same file `identities`: who wrote A and who wrote B."""
    for example, pair in zip(examples, identities.pairs.tolist(), strict=True):
        example["identities"] = pair
        if "swapped" in example:
            example["swapped"]["identities"] = pair[::-1]


def _examples(encoded: Sequence[TokenisedBattle], targets: Sequence[int]) -> list[Example]:
    pairs = zip(encoded, targets, strict=True)
    return [{"input_ids": battle.ids, "labels": target} for battle, target in pairs]


def collate(examples: Sequence[Example], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Makes a batch: `input_ids`, `attention_mask` INT64 `[examples, longest]` and `labels` INT64 `[examples]`.

    Padded on the right; `attention_mask` alone tells padding from text, so any id of the vocabulary will do as
    `pad_id`. Examples with `identities` give INT64 `[examples, 2]`.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    input_ids = torch.full((len(examples), longest), pad_id)
    attention_mask = torch.zeros((len(examples), longest), dtype=torch.int64)
    for row, example in enumerate(examples):
        ids = example["input_ids"]
        input_ids[row, : len(ids)] = torch.as_tensor(ids)
        attention_mask[row, : len(ids)] = 1
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    for key in ("labels", "identities"):
        if key in examples[0]:
            batch[key] = torch.tensor([example[key] for example in examples])
    return batch
