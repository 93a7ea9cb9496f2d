"""Where predictions are good and where not: by length, turns and language, by label, and as probabilities.

Functions of arrays and battles. They know nothing of files or of how results are shown.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preference_core.battles.battle import swapped_label_order
from preference_core.ensemble.metrics import log_losses
from preference_core.tensors import FIELDS
from preference_training.battles.baseline import differences_of
from preference_training.battles.rows import LabelledBattles
from preference_training.statistics.intervals import Array, Estimate, Indices, Mask, Resamples, quantile_edges, share_of

LENGTH_BUCKETS = 6
LEAD_BUCKETS = 8
RELIABILITY_BINS = 10
MOST_LANGUAGES = 12

#: Numbers of turns that are counted together: first and last of each group.
TURNS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, None))


@dataclass(frozen=True)
class Group:
    """Results of the battles that have something in common."""

    name: str
    battles: int
    log_loss: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class ReliabilityPoint:
    """Battles whose probability of one label was near `predicted` (their mean), and how often it was the right one."""

    predicted: float
    observed: Estimate
    battles: int


@dataclass(frozen=True)
class Share:
    """How often a label was right, and its mean probability."""

    label: str
    observed: Estimate
    predicted: Estimate


@dataclass(frozen=True)
class LeadByLength:
    """Share of wins of the first response less that of the second, where the first is longer by about as much."""

    name: str
    battles: int
    observed: Estimate
    predicted: Estimate


@dataclass(frozen=True)
class Agreement:
    """Share of battles for which two sources of predictions hold the same label most probable, `[names][names]`."""

    names: tuple[str, ...]
    same_decision: tuple[tuple[float, ...], ...]


def groups_by_length(data: LabelledBattles, probabilities: Array, resamples: Resamples) -> tuple[Group, ...]:
    """Quantile buckets of the characters of prompt and responses together."""
    lengths = np.array([sum(len(turn) for name in FIELDS for turn in getattr(b, name)) for b in data.battles])
    edges = quantile_edges(lengths, LENGTH_BUCKETS)
    bucket = np.searchsorted(edges, lengths, side="right")
    return _groups(((f"{name} characters", bucket == n) for n, name in _ranges(edges)), data, probabilities, resamples)


def groups_by_turns(data: LabelledBattles, probabilities: Array, resamples: Resamples) -> tuple[Group, ...]:
    """Groups of the number of turns."""
    turns = np.array([len(battle.prompt) for battle in data.battles])
    kinds = []
    for first, last in TURNS:
        name = f"{first} or more turns" if last is None else f"{first} to {last} turns"
        name = name if first != last else f"{first} turn{'s' if first > 1 else ''}"
        kinds.append((name, (turns >= first) & (turns <= (last or turns.max()))))
    return _groups(kinds, data, probabilities, resamples)


def groups_by_language(
    languages: Sequence[str], data: LabelledBattles, probabilities: Array, resamples: Resamples
) -> tuple[Group, ...]:
    """The most frequent languages, and all others together."""
    frequent = [language for language, _ in Counter(languages).most_common(MOST_LANGUAGES)]
    values = np.array(languages)
    kinds = [(language, values == language) for language in frequent]
    return _groups([*kinds, ("all others", ~np.isin(values, frequent))], data, probabilities, resamples)


def confusion_of(probabilities: Array, targets: Indices) -> tuple[tuple[int, ...], ...]:
    """Battles by right label (row) and most probable label (column)."""
    counts = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (targets, probabilities.argmax(axis=1)), 1)
    return tuple(tuple(row) for row in counts.tolist())


def confusion_shares_of(probabilities: Array, targets: Indices) -> tuple[tuple[Estimate | None, ...], ...]:
    """The same as shares of each row, with their intervals; None in the row of a label that no battle has."""
    labels = range(probabilities.shape[1])
    by_row = [probabilities.argmax(axis=1)[targets == row] for row in labels]
    return tuple(tuple(share_of(row == column) if len(row) else None for column in labels) for row in by_row)


def reliability_of(
    probabilities: Array, targets: Indices, labels: Sequence[str]
) -> dict[str, tuple[ReliabilityPoint, ...]]:
    """For each label: what was predicted and what came true, in quantile bins of the predicted probability."""
    points = {}
    for index, label in enumerate(labels):
        predicted, observed = probabilities[:, index], targets == index
        bin_of_row = np.searchsorted(quantile_edges(predicted, RELIABILITY_BINS), predicted, side="right")
        points[label] = tuple(
            ReliabilityPoint(
                float(predicted[bin_of_row == n].mean()),
                share_of(observed[bin_of_row == n]),
                int((bin_of_row == n).sum()),
            )
            for n in range(bin_of_row.max() + 1)
        )
    return points


def shares_of(probabilities: Array, targets: Indices, labels: Sequence[str], resamples: Resamples) -> tuple[Share, ...]:
    """Observed and predicted shares of each label: predictions that favour a position differ here."""
    predicted = resamples.means(list(probabilities.T))
    return tuple(Share(label, share_of(targets == index), predicted[index]) for index, label in enumerate(labels))


def lead_by_length(
    data: LabelledBattles, probabilities: Array, labels: Sequence[str], resamples: Resamples
) -> tuple[LeadByLength, ...]:
    """Verbosity bias: the first response's lead in quantile buckets of how much longer (in characters) it is."""
    differences = differences_of(data.battles, "characters")
    edges = quantile_edges(differences, LEAD_BUCKETS)
    bucket = np.searchsorted(edges, differences, side="right")
    observed = lead_of(np.eye(len(labels))[data.targets], labels)
    predicted = lead_of(probabilities, labels)
    ranges = _ranges(edges)
    within = [bucket == n for n, _ in ranges]
    observed_means = resamples.means([observed] * len(within), within)
    predicted_means = resamples.means([predicted] * len(within), within)
    return tuple(LeadByLength(name, int(within[n].sum()), observed_means[n], predicted_means[n]) for n, name in ranges)


def lead_of(probabilities: Array, labels: Sequence[str]) -> Array:
    """How much more probable it is that the first response wins than that the second does, `[n]`.

    0 where no label names a side.
    """
    partners = swapped_label_order(labels)
    for first, second in enumerate(partners):
        if first != second and labels[first].endswith("a"):
            lead: Array = probabilities[:, first] - probabilities[:, second]
            return lead
    return np.zeros(len(probabilities))


def agreement_of(sources: Mapping[str, Array]) -> Agreement:
    """Agreement of every source with every other."""
    decisions = [values.argmax(axis=1) for values in sources.values()]
    return Agreement(
        tuple(sources),
        tuple(tuple(float((one == other).mean()) for other in decisions) for one in decisions),
    )


def _groups(
    kinds: Iterable[tuple[str, Mask]],
    data: LabelledBattles,
    probabilities: Array,
    resamples: Resamples,
) -> tuple[Group, ...]:
    """One group for each kind of battle that occurs."""
    losses = log_losses(probabilities, data.targets)
    right = probabilities.argmax(axis=1) == data.targets
    found = [(name, rows) for name, rows in kinds if rows.any()]
    means = resamples.means([losses] * len(found), [rows for _, rows in found])
    return tuple(
        Group(name, int(rows.sum()), mean, share_of(right[rows]))
        for (name, rows), mean in zip(found, means, strict=True)
    )


def _ranges(edges: Array) -> list[tuple[int, str]]:
    """Number and name of each bucket between inner edges."""
    if len(edges) == 0:
        return [(0, "any")]
    shown = [f"{edge:,.0f}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(shown)]
    return list(enumerate([f"below {shown[0]}", *between, f"{shown[-1]} or more"]))
