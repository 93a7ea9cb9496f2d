"""What truncation costs: battles that were cut, tokens lost per field, and the log loss where it happened.

Counts per battle come with the predictions; those per field from tokenising the battles as serving does, where the
member's tokenizer is on this machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from preference_core.battles.battle import Battle
from preference_core.battles.template import template_of
from preference_core.battles.tokenisation import SETTINGS_FILE, TOKENIZER_FILE, BattleTokenizer
from preference_core.ensemble.member_tokenizer import TOKENIZER_SETTINGS, tokenizer_of_checkpoint
from preference_core.ensemble.metrics import log_losses
from preference_core.ensemble.settings import Classifier, Config
from preference_core.progress import StepDone
from preference_core.tensors import FIELDS
from preference_training.battles.rows import LabelledBattles
from preference_training.evaluation.predictions import Predictions
from preference_training.members import chosen_members
from preference_training.statistics.intervals import Array, Estimate, Indices, Mask, Resamples

#: Battles tokenised at once: bounds the memory of their ids.
_BATTLES_AT_ONCE = 256


@dataclass(frozen=True)
class TruncationCost:
    """What one member lost of the battles.

    `tokens_lost` is by field, None where the member's tokenizer is not here. `log_loss_cut` and `log_loss_whole` are
    those of the battles that were and were not cut; None where there are none of them.
    """

    name: str
    battles_cut: int
    tokens_lost: Mapping[str, int] | None
    log_loss_cut: Estimate | None
    log_loss_whole: Estimate | None


def truncation_costs(
    config: Config, data: LabelledBattles, read: Predictions, resamples: Resamples, report: StepDone
) -> tuple[TruncationCost, ...]:
    """One cost for each member that the predictions or its tokenizer tell anything of.

    Battles are tokenised again where the predictions say that they were cut, or do not say which were; `report` hears
    the member's name, how many battles are done, and of how many.
    """
    costs = []
    for member in chosen_members(config, None, Classifier):
        tokenizer = _tokenizer_of(config, member)
        dropped = read.dropped.get(member.name)
        if tokenizer is None:
            by_field = None
        elif dropped is None:
            by_field = _dropped_by_field(tokenizer, data.battles, partial(report, member.name))
            dropped = by_field.sum(axis=1)
        else:  # nothing was lost but by the battles that the file says were cut
            chosen = [battle for battle, count in zip(data.battles, dropped, strict=True) if count > 0]
            by_field = _dropped_by_field(tokenizer, chosen, partial(report, member.name))
        if dropped is None:
            continue
        losses = log_losses(read.members[member.name], data.targets) if member.name in read.members else None
        cut = dropped > 0
        costs.append(
            TruncationCost(
                member.name,
                int(cut.sum()),
                None if by_field is None else dict(zip(FIELDS, by_field.sum(axis=0).tolist(), strict=True)),
                None if losses is None else _mean_among(losses, cut, resamples),
                None if losses is None else _mean_among(losses, ~cut, resamples),
            )
        )
    return tuple(costs)


def _dropped_by_field(
    tokenizer: BattleTokenizer, battles: Sequence[Battle], report: Callable[[int, int], None]
) -> Indices:
    """Tokens cut from each field of each battle, `[battles, fields]`."""
    dropped = np.zeros((len(battles), len(FIELDS)), dtype=np.int64)
    for first in range(0, len(battles), _BATTLES_AT_ONCE):
        some = slice(first, first + _BATTLES_AT_ONCE)
        dropped[some] = [tokens.dropped for tokens in tokenizer.encode_batch(battles[some])]
        report(min(some.stop, len(battles)), len(battles))
    return dropped


def _mean_among(values: Array, rows: Mask, resamples: Resamples) -> Estimate | None:
    """The mean over `rows`; None where there are none."""
    return resamples.means([values], [rows])[0] if rows.any() else None


def _tokenizer_of(config: Config, member: Classifier) -> BattleTokenizer | None:
    """The tokenizer that was exported for a member, if it is the configured one, else that of its base."""
    exported = config.folders.exported(member.name)
    if (exported / SETTINGS_FILE).is_file():
        found = BattleTokenizer.from_folder(exported)
        expected = template_of(member.template), member.max_tokens, member.truncation
        if (found.settings.template, found.settings.max_tokens, found.settings.truncation) == expected:
            return found
    base = member.base_location.folder_with(TOKENIZER_FILE, TOKENIZER_SETTINGS)
    return None if base is None else tokenizer_of_checkpoint(base, member)
