"""The calibration error and its interval: what they are of forecasts whose calibration is known."""

import numpy as np
import pytest

from preference_training.statistics.calibration_error import BINS, calibration_estimate
from preference_training.statistics.intervals import Bootstrap, Estimate

pytestmark = pytest.mark.slow


def forecasts(random, rows, sharpened):
    """Probabilities that are right when `sharpened` is 1 and too sure above, and targets, `[rows, 3]` and `[rows]`."""
    right = random.dirichlet([2, 2, 2], size=rows)
    targets = (random.random(rows)[:, None] > right.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    said = right**sharpened
    return said / said.sum(axis=1, keepdims=True), targets


def error_of(probabilities, targets):
    """The definition, bin by bin."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return sum(abs((right - confidence)[bins == n].mean()) * (bins == n).mean() for n in set(bins.tolist()))


def estimate_of(probabilities, targets, bootstrap):
    return calibration_estimate(probabilities, targets, bootstrap.of(len(targets)))


def test_the_error_is_zero_when_confidence_equals_accuracy():
    probabilities = np.tile([0.75, 0.25], (400, 1))
    targets = np.array([0, 0, 0, 1] * 100)
    estimate = estimate_of(probabilities, targets, Bootstrap())
    assert (estimate.value, estimate.low) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert estimate_of(probabilities, 1 - targets, Bootstrap()).value == pytest.approx(0.5)


def test_the_error_is_the_mean_gap_between_confidence_and_accuracy_over_bins():
    probabilities, targets = forecasts(np.random.default_rng(4), 500, 2.0)
    estimate = estimate_of(probabilities, targets, Bootstrap())
    assert estimate.value == pytest.approx(error_of(probabilities, targets))
    assert 0 < estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("sharpened", "rows"), [(1.0, 300), (1.0, 3000), (1.2, 300), (1.5, 300), (0.7, 300)])
def test_the_interval_holds_the_true_error_about_as_often_as_it_says(sharpened, rows):
    random = np.random.default_rng(7)
    truth = error_of(*forecasts(random, 1_000_000, sharpened)) if sharpened != 1 else 0.0
    estimates = [estimate_of(*forecasts(random, rows, sharpened), Bootstrap(200, seed)) for seed in range(60)]
    assert sum(estimate.low <= truth <= estimate.high for estimate in estimates) >= 54


def test_forecasts_that_are_surely_miscalibrated_have_no_zero_in_their_interval():
    estimate = estimate_of(*forecasts(np.random.default_rng(5), 2000, 2.5), Bootstrap())
    assert estimate.low > 0.1


def test_a_handful_of_forecasts_or_equal_ones_have_no_interval():
    few = forecasts(np.random.default_rng(6), 9, 1.0)
    assert estimate_of(*few, Bootstrap()) == Estimate(pytest.approx(error_of(*few)), None, None)
    alike = np.tile([0.75, 0.25], (40, 1)), np.zeros(40, dtype=np.int64)
    assert estimate_of(*alike, Bootstrap()) == Estimate(pytest.approx(0.25), None, None)
