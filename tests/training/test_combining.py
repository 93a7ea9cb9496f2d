"""Fits of weights, temperatures and multipliers: each finds its minimum, and none of them overdoes it."""

import numpy as np
import pytest

from preference_core.ensemble.combination import Combination, Combine, softmax
from preference_core.ensemble.metrics import log_loss
from preference_core.ensemble.settings import LABELS_THREE_WAY, Classifier, Config
from preference_training.combining.rules import (
    THRESHOLDS,
    least_log_loss_weights,
    with_post_processing,
    with_temperatures,
)
from preference_training.evaluation.combination import combination_of_members
from preference_training.statistics.convex import fit_log_linear, minimise_on_simplex


def drawn(count, noise, seed=0):
    """Targets drawn from known scores, and the probabilities of members that see the scores through `noise` each."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(count, 3))
    targets = np.array([generator.choice(3, p=p) for p in softmax(scores)])
    return targets, [softmax(scores + deviation * generator.normal(size=scores.shape)) for deviation in noise]


def test_members_that_the_ensemble_leaves_out_have_a_rule_of_their_own():
    members = tuple(
        Classifier(name=name, base=f"bases/{name}", template="gemma", max_tokens=64) for name in ("x", "y", "z")
    )
    config = Config("some", members, combine=Combine(weights={"x": 0.0, "y": 0.75, "z": 0.0}))
    assert combination_of_members(config, ["y", "x"]).weights == (0.75, 0.0)
    assert combination_of_members(config, ["x"]).weights == (1.0,)
    assert combination_of_members(config, ["z", "x"]).members == ("z", "x")


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_weights_with_the_least_log_loss_are_no_worse_than_any_of_a_grid(average):
    targets, members = drawn(300, (0.5, 0.7, 2.0), seed=5)
    log_probabilities = np.log(np.stack(members, axis=1))

    def loss(weights):
        combination = Combination(LABELS_THREE_WAY, ("x", "y", "z"), tuple(weights), average)
        return log_loss(combination.probabilities(log_probabilities), targets)

    weights = least_log_loss_weights(log_probabilities, targets, average)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    grid = [(a / 20, b / 20, (20 - a - b) / 20) for a in range(21) for b in range(21 - a)]
    assert loss(weights) <= min(map(loss, grid)) + 1e-9


def test_a_member_that_knows_nothing_gets_no_weight():
    targets, (good,) = drawn(500, (0.0,), seed=6)
    opposite = np.roll(good, 1, axis=1)
    weights = least_log_loss_weights(np.log(np.stack([good, opposite], axis=1)), targets, "probabilities")
    assert weights[0] > 0.95


def test_the_minimum_on_the_simplex_is_found_inside_and_in_a_corner():
    target = np.array([0.2, 0.5, 0.3])
    inside = minimise_on_simplex(lambda w: 2 * (w - target), 3)
    assert inside == pytest.approx(target, abs=1e-9)
    corner = minimise_on_simplex(lambda w: np.array([3.0, 1.0, 2.0]), 3)
    assert corner.tolist() == [0, 1, 0]


def test_the_log_linear_fit_finds_the_zero_of_its_gradient():
    generator = np.random.default_rng(8)
    offset, features = generator.normal(size=(200, 3)), generator.normal(size=(200, 3, 2))
    targets = generator.integers(3, size=200)
    found = fit_log_linear(offset, features, targets)

    def loss(coefficients):
        return log_loss(softmax(offset + features @ coefficients), targets) + coefficients @ coefficients / 400

    for step in np.eye(2) * 1e-5:
        assert loss(found + step) == pytest.approx(loss(found - step), abs=1e-9)
        assert loss(found + 1e3 * step) > loss(found)


def test_the_temperature_undoes_overconfidence():
    targets, (honest,) = drawn(4000, (0.0,), seed=9)
    start = Combination(LABELS_THREE_WAY, ("x", "y"), (0.5, 0.5))
    log_probabilities = np.log(np.stack([honest, softmax(2 * np.log(honest))], axis=1))
    fitted = with_temperatures(start, log_probabilities, targets)
    assert fitted.temperatures == pytest.approx((1, 2), rel=0.1)


def test_a_member_that_says_the_opposite_is_silenced_not_inverted():
    targets, (honest,) = drawn(1000, (0.0,), seed=10)
    start = Combination(LABELS_THREE_WAY, ("x",), (1.0,))
    fitted = with_temperatures(start, -np.log(honest)[:, None], targets)
    assert fitted.temperatures == pytest.approx((20,))


def test_the_multiplier_rule_lowers_the_log_loss_and_its_rows_sum_to_one():
    targets, (honest,) = drawn(3000, (0.0,), seed=11)
    shy = softmax(np.where(honest > 0.7, np.log(honest) - 1, np.log(honest)))
    start = Combination(LABELS_THREE_WAY, ("x",), (1.0,))
    log_probabilities = np.log(shy)[:, None]
    fitted = with_post_processing(start, log_probabilities, targets)
    combined = fitted.probabilities(log_probabilities)
    assert log_loss(combined, targets) < log_loss(shy, targets) - 0.002
    assert np.abs(combined.sum(axis=1) - 1).max() < 1e-12
    assert fitted.post_processing.threshold in THRESHOLDS
