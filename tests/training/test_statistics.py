import numpy as np
import pytest

from preference_training.statistics import intervals as statistics
from preference_training.statistics.intervals import (
    FEWEST_ROWS,
    Bootstrap,
    Estimate,
    folds_of,
    quantile_edges,
    share_of,
)


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


def test_a_resample_holds_as_many_rows_as_there_are_however_many_are_drawn_at_once(monkeypatch):
    for at_once in (30_000 * 7, 10):  # several resamples in a piece, and one
        monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", at_once)
        sums = Bootstrap(resamples=15).of(30_000).sums(np.ones((30_000, 1)))
        assert (sums == 30_000).all()
        assert sums.shape == (15, 1)


def test_rows_are_drawn_once_for_all_statistics():
    drawn = []
    resamples = Bootstrap(resamples=50).of(100, lambda done, total: drawn.append((done, total)))
    values = np.random.default_rng(5).normal(size=(2, 100))
    resamples.mean(values[0])
    assert drawn[-1] == (50, 50)
    before = len(drawn)
    resamples.means(list(values))
    resamples.sums(values.T)
    assert len(drawn) == before


def test_counts_that_would_take_too_much_memory_are_drawn_again_and_are_the_same(monkeypatch):
    values = np.random.default_rng(6).normal(size=(3, 100))
    kept = Bootstrap().of(100)
    expected = kept.means(list(values)), kept.mean(values[2])
    monkeypatch.setattr(statistics, "_MOST_KEPT", 0)
    drawn = []
    again = Bootstrap().of(100, lambda done, total: drawn.append(done))
    assert (again.means(list(values)), again.mean(values[2])) == expected
    assert drawn == [1000, 1000]


def test_the_mean_of_a_group_is_that_of_its_rows_and_as_sure_as_their_number_lets_it_be():
    random = np.random.default_rng(8)
    values, group = random.normal(5, 2, size=3000), random.random(3000) < 0.2
    inside, whole = Bootstrap().of(3000).means([values, values], [group, np.ones(3000, dtype=bool)])
    assert whole == Bootstrap().mean(values)
    assert inside.value == pytest.approx(values[group].mean())
    width = 2 * 1.96 * values[group].std() / np.sqrt(group.sum())
    assert inside.high - inside.low == pytest.approx(width, rel=0.1)


def test_rows_that_cannot_tell_how_sure_their_mean_is_have_no_interval():
    few = np.arange(FEWEST_ROWS - 1) / 8
    assert Bootstrap().mean([0.5]) == Estimate(0.5, None, None)
    assert Bootstrap().mean(few) == Estimate(few.mean(), None, None)
    assert Bootstrap().mean(np.arange(FEWEST_ROWS)).low is not None
    assert Bootstrap().mean(np.full(500, 0.1)) == Estimate(pytest.approx(0.1), None, None)
    values, group = np.arange(500.0), np.arange(500) < 9
    inside, others = Bootstrap().of(500).means([values, values], [group, ~group])
    assert inside == Estimate(4.0, None, None)
    assert others.low < others.value < others.high


@pytest.mark.parametrize(
    ("held", "rows", "low", "high"),
    [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (5, 10, 0.2366, 0.7634), (1, 1, 0.2065, 1), (620, 1000, 0.5895, 0.6495)],
)
def test_a_share_has_wilsons_interval(held, rows, low, high):
    share = share_of(np.arange(rows) < held)
    assert share.value == held / rows
    assert (share.low, share.high) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_rare_share_holds_it_about_as_often_as_it_says():
    shares = [share_of(np.random.default_rng(seed).random(40) < 0.03) for seed in range(400)]
    assert sum(share.low <= 0.03 <= share.high for share in shares) >= 372


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
