"""Measures predictions against labels: each member, the ensemble, and what needs no model, side by side.

Predictions meet labels by id only. Every number that depends on which battles were drawn comes with its interval. It
knows nothing of models or of how results are shown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from preference_core.ensemble.metrics import log_losses
from preference_core.ensemble.settings import Config, LengthBaseline
from preference_core.files.rows import read_rows
from preference_core.progress import StepDone, no_report
from preference_training.battles.baseline import BaselinePredictions, baseline_predictions
from preference_training.battles.rows import LabelledBattles, read_labelled
from preference_training.evaluation.breakdown import (
    Agreement,
    Group,
    LeadByLength,
    ReliabilityPoint,
    Share,
    agreement_of,
    confusion_of,
    confusion_shares_of,
    groups_by_language,
    groups_by_length,
    groups_by_turns,
    lead_by_length,
    reliability_of,
    shares_of,
)
from preference_training.evaluation.predictions import ENSEMBLE, Predictions, answered_by, read_predictions
from preference_training.evaluation.swaps import OtherOrder, SwapConsistency, other_order, swap_consistencies
from preference_training.evaluation.truncation import TruncationCost, truncation_costs
from preference_training.statistics.calibration_error import calibration_estimate
from preference_training.statistics.intervals import Array, Bootstrap, Estimate, Indices, Resamples, exactly, share_of

#: Name of the ensemble that averages both orders of the responses, among the scores.
SYMMETRIC = "symmetric"


@dataclass(frozen=True)
class Score:
    """How good one source of predictions is.

    `gain` is how much lower its log loss is than that of the class prior, battle by battle; None for what knows nothing
    of a battle. `gain_over_length` is the same for a length baseline that reads as many orders of the responses, where
    there is one. `dropped_tokens` counts what truncation cut, where that is known.
    """

    name: str
    log_loss: Estimate
    gain: Estimate | None = None
    gain_over_length: Estimate | None = None
    accuracy: Estimate | None = None
    calibration_error: Estimate | None = None
    dropped_tokens: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on `battles` battles. What belongs to a single source of predictions is that of the ensemble.

    `scores` are those of the members, the ensemble, the symmetric one (where both orders are known), the length
    baseline (where one was fitted), the class prior and the uniform guess. `confusion` counts battles by label (row)
    and by the most probable label (column); `confusion_shares` are the same as shares of each row. `groups` has the
    results by `length`, `turns` and `language`. `swaps` needs predictions of the exchanged battles. `answered_by` is
    the ensemble that made the predictions, if they say so.
    """

    battles: int
    labels: tuple[str, ...]
    scores: tuple[Score, ...]
    confusion: tuple[tuple[int, ...], ...]
    confusion_shares: tuple[tuple[Estimate | None, ...], ...]
    groups: Mapping[str, tuple[Group, ...]]
    reliability: Mapping[str, tuple[ReliabilityPoint, ...]]
    shares: tuple[Share, ...]
    lead_by_length: tuple[LeadByLength, ...]
    agreement: Agreement
    truncation: tuple[TruncationCost, ...]
    swaps: tuple[SwapConsistency, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    answered_by: str = ""


def evaluate(
    config: Config,
    predictions: Path,
    labelled: Path,
    *,
    swapped: Path | None = None,
    symmetric: Path | None = None,
    bootstrap: Bootstrap | None = None,
    report: StepDone = no_report,
) -> Evaluation:
    """Joins the files by id and measures every source of predictions that they hold.

    `swapped` are predictions of the same battles with their responses exchanged, `symmetric` those of the symmetric
    ensemble, which averages both orders; one of them is enough for swap consistency. Raises `UserError` when ids
    differ, a column is missing, or a row holds no probabilities.
    """
    bootstrap = bootstrap or Bootstrap()
    report("files", 0, 2)
    data = read_labelled(labelled, config.labels)
    languages = _languages(labelled)
    report("files", 1, 2)
    read = read_predictions(predictions, config).in_order_of(data.ids)
    report("files", 2, 2)
    sources = {**read.members, ENSEMBLE: read.ensemble}
    resamples = bootstrap.of(len(data.ids), partial(report, "resamples"))
    other = other_order(config, read, swapped, symmetric)
    groups = {
        "length": groups_by_length(data, read.ensemble, resamples),
        "turns": groups_by_turns(data, read.ensemble, resamples),
    }
    if languages is not None:
        groups["language"] = groups_by_language(languages, data, read.ensemble, resamples)
    return Evaluation(
        battles=len(data.ids),
        labels=config.labels,
        scores=_scores(config, labelled, data, read, other, resamples),
        confusion=confusion_of(read.ensemble, data.targets),
        confusion_shares=confusion_shares_of(read.ensemble, data.targets),
        groups=groups,
        reliability=reliability_of(read.ensemble, data.targets, config.labels),
        shares=shares_of(read.ensemble, data.targets, config.labels, resamples),
        lead_by_length=lead_by_length(data, read.ensemble, config.labels, resamples),
        agreement=agreement_of(sources),
        truncation=truncation_costs(config, data, read, resamples, report),
        swaps=swap_consistencies(config, sources, other.exchanged, resamples),
        bootstrap=bootstrap,
        answered_by=answered_by(predictions),
    )


def _scores(
    config: Config,
    labelled: Path,
    data: LabelledBattles,
    read: Predictions,
    other: OtherOrder,
    resamples: Resamples,
) -> tuple[Score, ...]:
    """Members, ensembles, length baseline, class prior (the shares of these very labels) and the uniform guess."""
    labels = len(config.labels)
    prior = np.broadcast_to(
        np.bincount(data.targets, minlength=labels) / len(data.targets), (len(data.targets), labels)
    )
    prior_losses = log_losses(prior, data.targets)

    fitted = baseline_predictions(config, labelled, data, resamples.bootstrap.seed)
    baseline = fitted or _baseline_among_members(config, read, other)

    def score(name: str, probabilities: Array, than: Array | None = None, dropped: Indices | None = None) -> Score:
        losses = log_losses(probabilities, data.targets)
        compared = [losses, prior_losses - losses]
        if than is not None:
            compared.append(log_losses(than, data.targets) - losses)
        loss, gain, *over_length = resamples.means(compared)
        return Score(
            name,
            loss,
            gain,
            over_length[0] if over_length else None,
            share_of(probabilities.argmax(axis=1) == data.targets),
            calibration_estimate(probabilities, data.targets, resamples),
            None if dropped is None else int(dropped.sum()),
        )

    one_order, both_orders = (baseline.probabilities, baseline.symmetric) if baseline else (None, None)
    baselines = {member.name for member in config.members if isinstance(member, LengthBaseline)}
    scores = [
        score(name, values, None if name in baselines else one_order, read.dropped.get(name))
        for name, values in read.members.items()
    ]
    scores.append(score(ENSEMBLE, read.ensemble, one_order))
    if other.symmetric is not None:
        scores.append(score(SYMMETRIC, other.symmetric, both_orders))
    if fitted is not None:
        scores.append(score(fitted.name, fitted.probabilities))
    right = share_of(prior.argmax(axis=1) == data.targets)
    scores.append(Score("class prior", resamples.mean(prior_losses), accuracy=right))
    scores.append(Score("uniform", exactly(math.log(labels))))
    return tuple(scores)


def _baseline_among_members(config: Config, read: Predictions, other: OtherOrder) -> BaselinePredictions | None:
    for member in config.members:
        if isinstance(member, LengthBaseline):
            predicted, exchanged = read.members[member.name], other.exchanged.get(member.name)
            symmetric = None if exchanged is None else (predicted + exchanged) / 2
            return BaselinePredictions(member.name, predicted, symmetric)
    return None


def _languages(labelled: Path) -> list[str] | None:
    """The column `language` of the labelled file, in its order; None without one."""
    found: list[str] = []
    for row in read_rows(labelled):
        if "language" not in row:
            return None
        found.append(str(row["language"] or "unknown"))
    return found
