import numpy as np
import pytest

from preference_core.metrics import calibration_error
from preference_training.statistics import Bootstrap, Estimate, calibration_estimate, folds_of, quantile_edges


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(5, 2, size=2000)
    estimate = Bootstrap(resamples=2000).mean(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.08)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    random, bootstrap = np.random.default_rng(2), Bootstrap(resamples=400)
    estimates = [bootstrap.mean(random.exponential(1.0, size=200)) for _ in range(300)]
    assert 0.90 <= np.mean([e.low <= 1.0 <= e.high for e in estimates]) <= 0.98


def test_equal_seeds_draw_equal_samples_and_others_do_not():
    values = np.random.default_rng(3).normal(size=100)
    assert Bootstrap(seed=1).mean(values) == Bootstrap(seed=1).mean(values)
    assert Bootstrap(seed=1).mean(values) != Bootstrap(seed=2).mean(values)


def test_drawing_in_pieces_changes_nothing_about_the_size_of_a_sample():
    estimate = Bootstrap(resamples=150).mean(np.ones(30_000))  # more rows than fit into one piece
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)
    assert not estimate.is_exact


def test_one_row_has_no_interval():
    assert Bootstrap().mean([0.5]) == Estimate(0.5, None, None)


def test_a_share_is_that_of_its_rows_and_as_sure_as_their_number_lets_it_be():
    random = np.random.default_rng(6)
    holds, among = random.random(3000) < 0.6, random.random(3000) < 0.3
    share = Bootstrap().share(holds, among)
    assert share.value == pytest.approx(holds[among].mean())
    width = 2 * 1.96 * np.sqrt(share.value * (1 - share.value) / among.sum())
    assert share.high - share.low == pytest.approx(width, rel=0.1)
    nobody, one = np.zeros(3000, dtype=bool), np.arange(3000) == 7
    assert Bootstrap().share(holds, nobody) is None
    assert Bootstrap().share(one, one) == Estimate(1.0, None, None)


def test_calibration_error_is_that_of_the_metrics_and_lies_in_its_interval():
    random = np.random.default_rng(4)
    probabilities = random.dirichlet(np.ones(3), size=500)
    targets = random.integers(3, size=500)
    estimate = calibration_estimate(probabilities, targets, Bootstrap())
    assert estimate.value == pytest.approx(calibration_error(probabilities, targets))
    assert estimate.low < estimate.value < estimate.high


def test_every_row_is_judged_once_and_never_fitted_on_in_the_same_fold():
    judged_rows = []
    for fitted, judged in folds_of(23, 5, seed=0):
        assert sorted([*fitted, *judged]) == list(range(23))
        judged_rows += judged.tolist()
    assert sorted(judged_rows) == list(range(23))


def test_more_folds_than_rows_are_refused():
    with pytest.raises(ValueError, match="3 rows"):
        list(folds_of(3, 4, seed=0))


@pytest.mark.parametrize("values", [[7.0] * 50, [0, 0, 0, 0, 0, 1, 2, 3], list(range(1000)), [1.5]])
def test_quantile_buckets_have_different_edges_and_none_is_empty(values):
    edges = quantile_edges(values, 250)
    assert (np.diff(edges) > 0).all()
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    assert counts.min() >= 1
    assert len(edges) == min(250, len(set(values))) - 1 or len(edges) < 250
