"""Measures predictions against labels: each member, the ensemble, and what needs no model, side by side.

Predictions meet labels by id only. Every number that depends on which battles were drawn comes with its interval. It
knows nothing of models or of how results are shown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preference_core.metrics import log_losses
from preference_core.settings import Config
from preference_training.baseline import baseline_predictions
from preference_training.breakdown import (
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
from preference_training.predictions import ENSEMBLE, Predictions, read_predictions
from preference_training.rows import LabelledBattles, read_labelled, rows_by_id
from preference_training.statistics import Array, Bootstrap, Estimate, Indices, calibration_estimate, exactly
from preference_training.swaps import SwapConsistency, swap_consistencies
from preference_training.truncation import TruncationCost, truncation_costs


@dataclass(frozen=True)
class Score:
    """How good one source of predictions is.

    `gain` is how much lower its log loss is than that of the class prior, battle by battle; None for what knows nothing
    of a battle. `dropped_tokens` counts what truncation cut, where that is known.
    """

    name: str
    log_loss: Estimate
    gain: Estimate | None = None
    accuracy: Estimate | None = None
    calibration_error: Estimate | None = None
    dropped_tokens: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on `battles` battles. What concerns one source of predictions alone is of the ensemble.

    `scores` are those of the members, the ensemble, the length baseline (where one was fitted), the class prior and
    the uniform guess. `confusion` counts battles by label (row) and by the most probable label (column);
    `confusion_shares` are the same as shares of each row. `groups` has the results by `length`, `turns` and `language`.
    `swaps` needs predictions of the exchanged battles.
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


def evaluate(
    config: Config,
    predictions: Path,
    labelled: Path,
    *,
    swapped: Path | None = None,
    symmetric: Path | None = None,
    bootstrap: Bootstrap | None = None,
) -> Evaluation:
    """Joins the files by id and measures every source of predictions that they hold.

    `swapped` are predictions of the same battles with their responses exchanged, `symmetric` those of the symmetric
    ensemble, which averages both orders; one of them is enough for swap consistency. Raises `UserError` when ids
    differ, a column is missing, or a row holds no probabilities.
    """
    bootstrap = bootstrap or Bootstrap()
    data = read_labelled(labelled, config.labels)
    read = read_predictions(predictions, config).in_order_of(data.ids)
    sources = {**read.members, ENSEMBLE: read.ensemble}
    groups = {
        "length": groups_by_length(data, read.ensemble, bootstrap),
        "turns": groups_by_turns(data, read.ensemble, bootstrap),
    }
    languages = _languages(labelled, data)
    if languages is not None:
        groups["language"] = groups_by_language(languages, data, read.ensemble, bootstrap)
    return Evaluation(
        battles=len(data.ids),
        labels=config.labels,
        scores=_scores(config, labelled, data, read, bootstrap),
        confusion=confusion_of(read.ensemble, data.targets),
        confusion_shares=confusion_shares_of(read.ensemble, data.targets, bootstrap),
        groups=groups,
        reliability=reliability_of(read.ensemble, data.targets, config.labels, bootstrap),
        shares=shares_of(read.ensemble, data.targets, config.labels, bootstrap),
        lead_by_length=lead_by_length(data, read.ensemble, config.labels, bootstrap),
        agreement=agreement_of(sources),
        truncation=truncation_costs(config, data, read, bootstrap),
        swaps=swap_consistencies(config, read, sources, swapped, symmetric, bootstrap),
        bootstrap=bootstrap,
    )


def _scores(
    config: Config, labelled: Path, data: LabelledBattles, read: Predictions, bootstrap: Bootstrap
) -> tuple[Score, ...]:
    """Members, ensemble, length baseline, class prior (the shares of these very labels) and the uniform guess."""
    labels = len(config.labels)
    prior = np.broadcast_to(
        np.bincount(data.targets, minlength=labels) / len(data.targets), (len(data.targets), labels)
    )
    prior_losses = log_losses(prior, data.targets)

    def score(name: str, probabilities: Array, dropped: Indices | None = None) -> Score:
        losses = log_losses(probabilities, data.targets)
        return Score(
            name,
            bootstrap.mean(losses),
            bootstrap.mean(prior_losses - losses),
            bootstrap.mean(probabilities.argmax(axis=1) == data.targets),
            calibration_estimate(probabilities, data.targets, bootstrap),
            None if dropped is None else int(dropped.sum()),
        )

    scores = [score(name, values, read.dropped.get(name)) for name, values in read.members.items()]
    scores.append(score(ENSEMBLE, read.ensemble))
    baseline = baseline_predictions(config, labelled, data, bootstrap.seed)
    if baseline is not None:
        scores.append(score(*baseline))
    right = bootstrap.mean(prior.argmax(axis=1) == data.targets)
    scores.append(Score("class prior", bootstrap.mean(prior_losses), accuracy=right))
    scores.append(Score("uniform", exactly(math.log(labels))))
    return tuple(scores)


def _languages(labelled: Path, data: LabelledBattles) -> list[str] | None:
    """The column `language` of the labelled file, in its order; None without one."""
    rows = rows_by_id(labelled)
    if "language" not in rows[data.ids[0]]:
        return None
    return [str(rows[identity]["language"] or "unknown") for identity in data.ids]
