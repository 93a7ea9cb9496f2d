"""How members are best combined, from their probabilities and the right labels: arrays in, a `Combination` out.

Every fit is convex except that of the threshold, which is tried over a grid. It knows nothing of files.

Members come as `log_probabilities` `[n, members, labels]`: as good as logits, which differ by a constant per row only.
"""

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from preference_core.ensemble.combination import Combination, PostProcessing
from preference_core.ensemble.metrics import log_loss
from preference_training.statistics.convex import fit_log_linear, minimise_on_simplex
from preference_training.statistics.intervals import Array, Indices

Rule = Literal["inverse-log-loss", "log-loss"]
RULES: tuple[Rule, ...] = get_args(Rule)

#: Bounds of a fitted temperature: beyond them a member is either certain or says nothing.
TEMPERATURES = (0.05, 20.0)
#: Thresholds that the threshold/multiplier rule is tried with; 0.75 is the published one.
THRESHOLDS = tuple(round(0.4 + 0.05 * step, 2) for step in range(12))


def with_weights(rule: Rule, start: Combination, log_probabilities: Array, targets: Indices) -> Combination:
    """`start` with the weights that `rule` gives its members at their temperatures."""
    tempered = np.log(np.maximum(start.member_probabilities(log_probabilities), np.finfo(np.float64).tiny))
    if rule == "inverse-log-loss":
        members = range(tempered.shape[1])
        weights = inverse_log_loss_weights([log_loss(np.exp(tempered[:, m]), targets) for m in members])
    else:
        weights = least_log_loss_weights(tempered, targets, start.average)
    return replace(start, weights=tuple(weights.tolist()))


def with_temperatures(start: Combination, log_probabilities: Array, targets: Indices) -> Combination:
    """`start` with the temperature at which each member alone has the least log loss (Guo et al., 2017)."""
    temperatures = []
    for member in range(log_probabilities.shape[1]):
        scores = log_probabilities[:, member]
        sharpness = 1 + float(fit_log_linear(scores, scores[..., None], targets)[0])
        coldest, hottest = TEMPERATURES
        temperatures.append(1 / min(max(sharpness, 1 / hottest), 1 / coldest))
    return replace(start, temperatures=tuple(temperatures))


def with_post_processing(start: Combination, log_probabilities: Array, targets: Indices) -> Combination:
    """`start` with the threshold, and the multiplier per label, that give its predictions the least log loss.

    For one threshold the renormalised rule is a log-linear model of its multipliers, which is convex.
    """
    probabilities = start.probabilities(log_probabilities)
    offset = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    tried = []
    for threshold in THRESHOLDS:
        raised = (probabilities > threshold)[..., None] * np.eye(len(start.labels))
        factors = np.exp(fit_log_linear(offset, raised, targets)).tolist()
        rule = PostProcessing(threshold, dict(zip(start.labels, factors, strict=True)))
        tried.append((log_loss(rule.apply(probabilities, start.labels), targets), threshold, rule))
    return replace(start, post_processing=min(tried, key=lambda trial: trial[:2])[2])


def inverse_log_loss_weights(losses: npt.ArrayLike) -> Array:
    """The published rule: weights proportional to 1 / log loss, sum 1."""
    inverse = 1 / np.asarray(losses, dtype=np.float64)
    weights: Array = inverse / inverse.sum()
    return weights


def least_log_loss_weights(log_probabilities: Array, targets: Indices, average: str) -> Array:
    """Weights `[members]` on the simplex at which the average of the members has the least log loss; convex in them.

    `average` says of what the average is: "probabilities" or "logits", as in `Combination`.
    """
    rows = np.arange(len(targets))
    right = np.exp(log_probabilities[rows, :, targets])

    def of_probabilities(weights: Array) -> Array:
        gradient: Array = -((1 / (right @ weights)) @ right) / len(rows)
        return gradient

    def of_logits(weights: Array) -> Array:
        mixed = np.exp(np.einsum("nml,m->nl", log_probabilities, weights))
        mixed /= mixed.sum(axis=1, keepdims=True)
        expected = np.einsum("nml,nl->nm", log_probabilities, mixed)
        gradient: Array = (expected - log_probabilities[rows, :, targets]).mean(axis=0)
        return gradient

    return minimise_on_simplex(of_logits if average == "logits" else of_probabilities, right.shape[1])
