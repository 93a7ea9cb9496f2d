"""Compares what is exported with probabilities that the owner's own script wrote for the same battles.

The gate feeds the original model the exporter's own ids, so that it cannot see another text, other special tokens, or
labels in another order. The owner's script can. Battles and predictions meet by id.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_core.battles.battle import Battle, battle_from_row
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.combination import Combination
from preference_core.ensemble.metrics import is_labelled, log_loss, target_of_row
from preference_core.ensemble.settings import LABELS_THREE_WAY, Config, Member, ParityLimits
from preference_core.errors import UserError
from preference_core.files.formats import RawRow
from preference_core.files.predictions import probabilities_of
from preference_core.files.rows import values_by_id
from preference_core.progress import StepDone
from preference_export.artefacts.model import Logits, TokenIds
from preference_export.checkpoint.job import Job
from preference_export.engine.runtimes import use_gpu_of
from preference_export.gate.causes import Case, likeliest_cause, rules_of
from preference_export.gate.check import subject_of
from preference_export.gate.compare import ways_of
from preference_export.gate.parity import limits_of, over

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Differences from the owner's predictions; `left_out` counts battles of the file without one.

    A decision flips when another label is the most probable one. `broken` has a sentence for each limit that is
    exceeded; `cause` says what most likely explains it.
    """

    battles: int
    left_out: int
    shortened: int
    max_probability_difference: float
    mean_probability_difference: float
    decision_flips: int
    log_loss_change: float | None
    worst_id: str
    broken: tuple[str, ...]
    cause: str | None


def compare_with_owner(
    jobs: Sequence[Job[Member]], member: Member | None, predictions: Path, battles: Path, report: StepDone
) -> Agreement:
    """Compares the ensemble of `jobs`, or one `member` alone, with a file of the owner's predictions.

    `report` hears a member's name, how many battles are done, and of how many.
    """
    config = jobs[0].config
    chosen = {job.member.name: job for job in jobs if member in (None, job.member)}
    members = [job.member for job in chosen.values()]
    theirs = values_by_id(predictions, lambda row: _probabilities(row, config.labels, member))
    known = values_by_id(battles, lambda row: _battle(row, config.labels))
    unknown = next((identity for identity in theirs if identity not in known), None)
    if unknown is not None or not theirs:
        what = "holds no predictions" if unknown is None else f"has the id `{unknown}`, which `{battles}` lacks"
        raise UserError(f"`{predictions}` {what}", hint="Name the file that was scored with `--battles`.")
    ids = [identity for identity in known if identity in theirs]
    texts = [known[identity][0] for identity in ids]
    encoders = {name: encoder_from_folder(job.exported) for name, job in chosen.items()}
    encoded = {name: encoder.encode_batch(texts) for name, encoder in encoders.items()}

    def opened(name: str) -> Callable[[Sequence[TokenIds]], Logits]:
        use_gpu_of(chosen[name].member)
        ((classifier, _), *_) = ways_of(chosen[name], subject_of(chosen[name]).file)

        def run(sequences: Sequence[TokenIds]) -> Logits:
            rows = []
            for done, sequence in enumerate(sequences, 1):
                rows.append(classifier.logits([sequence]))
                report(name, done, len(sequences))
            return np.concatenate(rows)

        return run

    rules = rules_of(_combination(config, member))
    case = Case(
        labels=config.labels,
        battles=texts,
        theirs=np.array([theirs[identity] for identity in ids]),
        logits={name: opened(name)([battle.ids for battle in rows]) for name, rows in encoded.items()},
        encoders=encoders,
        rules=rules,
        open=opened,
        tolerance=_limits(members).max_probability_difference or 0.0,
    )
    targets = [known[identity][1] for identity in ids]
    ours = rules[""](case.logits, texts)
    difference = np.abs(ours - case.theirs)
    change = None
    if None not in targets:
        change = abs(log_loss(ours, targets) - log_loss(case.theirs, targets))  # type: ignore[arg-type]
    flips = int((ours.argmax(1) != case.theirs.argmax(1)).sum())
    measured = {
        "max_probability_difference": float(difference.max()),
        "max_decision_flips": flips,
        "max_log_loss_change": change,
    }
    broken = over(measured, _limits(members))
    return Agreement(
        battles=len(ids),
        left_out=len(known) - len(ids),
        shortened=sum(any(any(rows[n].dropped) for rows in encoded.values()) for n in range(len(ids))),
        max_probability_difference=float(difference.max()),
        mean_probability_difference=float(difference.mean()),
        decision_flips=flips,
        log_loss_change=change,
        worst_id=ids[int(difference.max(axis=1).argmax())],
        broken=tuple(broken),
        cause=likeliest_cause(case) if broken else None,
    )


def _combination(config: Config, member: Member | None) -> Combination:
    """The ensemble's rule; of one member alone, its own probabilities."""
    return config.combination if member is None else Combination(config.labels, (member.name,), (1.0,))


def _limits(members: Sequence[Member]) -> ParityLimits:
    """The widest of the members' limits; none where one of them has none."""
    all_limits = [limits_of(member.precision, member.parity) for member in members]
    widest: dict[str, Any] = {}
    for entry in fields(ParityLimits):
        values = [getattr(limits, entry.name) for limits in all_limits]
        widest[entry.name] = None if None in values else max(values)
    return ParityLimits(**widest)


def _battle(row: RawRow, labels: Sequence[str]) -> tuple[Battle, int | None]:
    target = target_of_row(row, labels) if is_labelled(row, labels) else None
    return battle_from_row(row, invalid_text="replace"), target


def _probabilities(row: RawRow, labels: Sequence[str], member: Member | None) -> list[float]:
    """Probabilities in the order of `labels`, from columns of those names, of the head's, or of a submission."""
    head = list(member.head_labels) if member else []
    known = [list(labels), head, _published(labels)]
    columns = next((names for names in known if names and all(name in row for name in names)), None)
    return probabilities_of(row, columns or labels)


def _published(labels: Sequence[str]) -> list[str]:
    """The columns of the published submission file for labels that are called otherwise."""
    model_a, model_b, tie = LABELS_THREE_WAY
    ends: Mapping[str, str] = {"a": model_a, "b": model_b}
    return [ends.get(label[-1].lower(), tie) for label in labels] if len(labels) <= len(LABELS_THREE_WAY) else []
