"""How sure a measured number is: bootstrap intervals, and folds for what is fitted on the battles it is judged by.

Arrays in, numbers out. It knows nothing of battles or models.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LEVEL = 0.95

#: Rows drawn at once: bounds the memory of a bootstrap to some tens of megabytes.
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """A measured number and the bounds of its 95 % interval; None where the rows are too few to give any.

    `is_exact` says that no other rows would have given another number. A sample whose rows are all alike is not exact:
    its interval has no width, and tells how little that sample knows of its own spread.
    """

    value: float
    low: float | None
    high: float | None
    is_exact: bool = False


def exactly(value: float) -> Estimate:
    """A number that does not depend on which rows were drawn."""
    return Estimate(value, value, value, is_exact=True)


@dataclass(frozen=True)
class Bootstrap:
    """The percentile bootstrap (Efron, 1979) over rows: `resamples` samples of as many rows, drawn with replacement.

    Every statistic here is a function of sums over rows, so that a resample is one vector of counts and all of them
    are one matrix product. The same seed draws the same rows: statistics of equal rows are compared on equal samples.
    """

    resamples: int = 1000
    seed: int = 0

    def estimate(self, columns: npt.ArrayLike, statistic: Callable[[Array], Array]) -> Estimate:
        """`statistic` of the column sums of `columns` `[rows, k]`, with its interval.

        It maps sums `[resamples, k]` to values `[resamples]`. Resamples whose value is not a number (no row of a rare
        kind was drawn) are left out of the interval. One row has no interval.
        """
        values = np.asarray(columns, dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        measured = float(statistic(values.sum(axis=0, keepdims=True))[0])
        if len(values) < 2:
            return Estimate(measured, None, None)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = statistic(self._sums(values))
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) == 0:
            return Estimate(measured, None, None)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(drawn, [tail, 100 - tail])
        return Estimate(measured, float(low), float(high))

    def mean(self, values: npt.ArrayLike) -> Estimate:
        """The mean of `values` `[rows]`."""
        column = np.asarray(values, dtype=np.float64)
        return self.estimate(column, lambda sums: sums[:, 0] / len(column))

    def share(self, holds: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> Estimate | None:
        """The share of the rows `among` for which `holds` is true, both `[rows]`; None where there is no such row.

        How many rows are `among` is drawn, too. One such row has no interval.
        """
        columns = np.stack([holds & among, among], axis=1)
        if not among.any():
            return None
        estimate = self.estimate(columns, lambda sums: sums[:, 0] / sums[:, 1])
        return estimate if among.sum() > 1 else Estimate(estimate.value, None, None)

    def _sums(self, columns: Array) -> Array:
        """Column sums of each resample, `[resamples, k]`."""
        rows, random = len(columns), np.random.default_rng(self.seed)
        at_once = max(1, _DRAWS_AT_ONCE // rows)
        sums = []
        for first in range(0, self.resamples, at_once):
            count = min(at_once, self.resamples - first)
            drawn = random.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
            sums.append(times.astype(np.float64) @ columns)
        return np.concatenate(sums)


def calibration_estimate(probabilities: Array, targets: Indices, bootstrap: Bootstrap, bins: int = 15) -> Estimate:
    """Expected calibration error as `preference_core.metrics.calibration_error` defines it, with its interval.

    The error is a sum of absolute gaps, which resampling can only widen: the interval leans upwards.
    """
    confidence = probabilities.max(axis=1)
    bin_of_row = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.zeros((len(targets), bins))
    gaps[np.arange(len(targets)), bin_of_row] = (probabilities.argmax(axis=1) == targets) - confidence
    return bootstrap.estimate(gaps, lambda sums: np.abs(sums).sum(axis=1) / len(targets))


def folds_of(rows: int, folds: int, seed: int) -> Iterator[tuple[Indices, Indices]]:
    """Row numbers `(fitted, judged)` of each fold: every row is judged once, by what was fitted on the others."""
    if not 2 <= folds <= rows:
        raise ValueError(f"{rows} rows cannot be divided into {folds} folds")
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), folds)
    for number, judged in enumerate(parts):
        yield np.sort(np.concatenate(parts[:number] + parts[number + 1 :])), np.sort(judged)


def quantile_edges(values: npt.ArrayLike, buckets: int) -> Array:
    """Inner edges of at most `buckets` buckets with about as many of `values` each, ascending and all different.

    A value belongs to bucket `numpy.searchsorted(edges, value, side="right")`. Values that repeat more often than a
    bucket is large share one bucket, so that fewer may remain; every bucket holds at least one of `values`.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    inner: Array = np.unique(np.quantile(ordered, np.arange(1, buckets) / buckets, method="higher"))
    edges: Array = inner[inner > ordered[0]]
    return edges
