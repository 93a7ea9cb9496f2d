"""How sure a measured number is: bootstrap and Wilson intervals, and folds for what is judged on the rows that it was
fitted on.

Arrays in, numbers out. It knows nothing of battles or models.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

LEVEL = 0.95

#: Fewer rows than this are resampled into intervals that hold far less often than they say (see docs/decisions.md).
FEWEST_ROWS = 10

#: Resampled values that differ by no more than this are all alike.
ALIKE = 1e-12
#: Rows drawn at once, and counts multiplied at once: each bounds a pass to some tens of megabytes.
_DRAWS_AT_ONCE = 2_000_000
#: Counts that are kept for the next statistic, one byte each; of more rows than this allows, they are drawn again.
_MOST_KEPT = 512 * 2**20


@dataclass(frozen=True)
class Estimate:
    """A measured number and the bounds of its 95 % interval; None where its rows cannot tell.

    They cannot where they are fewer than `FEWEST_ROWS`, or all alike: every resample is the same then, which tells how
    little that sample knows of its own spread. `is_exact` says that no other rows would have given another number.
    """

    value: float
    low: float | None
    high: float | None
    is_exact: bool = False


def exactly(value: float) -> Estimate:
    """A number that does not depend on which rows were drawn."""
    return Estimate(value, value, value, is_exact=True)


def share_of(holds: Mask) -> Estimate:
    """The share of rows `[rows]` that are true, of at least one row, with Wilson's score interval (1927).

    Unlike resampling, it has a width where none or all of the rows are true, and few rows are enough for it (Brown,
    Cai and DasGupta, 2001).
    """
    rows, held = len(holds), int(np.count_nonzero(holds))
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    middle = (held + z**2 / 2) / (rows + z**2)
    half = z * sqrt(held * (rows - held) / rows + z**2 / 4) / (rows + z**2)
    low = 0.0 if held == 0 else middle - half
    high = 1.0 if held == rows else middle + half
    return Estimate(held / rows, low, high)


@dataclass(frozen=True)
class Bootstrap:
    """The percentile bootstrap (Efron, 1979) over rows: `resamples` samples of as many rows, drawn with replacement.

    The same seed draws the same rows: statistics of equal rows are compared on equal samples.
    """

    resamples: int = 1000
    seed: int = 0

    def of(self, rows: int, report: Callable[[int, int], None] = lambda done, total: None) -> "Resamples":
        """The samples of `rows` rows, for any number of statistics; `report` hears how many were drawn, of how many."""
        return Resamples(rows, self, report)

    def mean(self, values: npt.ArrayLike) -> Estimate:
        """The mean of `values` `[rows]`, whose samples nothing else needs."""
        column = np.asarray(values, dtype=np.float64)
        return self.of(len(column)).mean(column)


class Resamples:
    """The samples that a bootstrap draws of `rows` rows: drawn once, however many statistics are asked for.

    A sample is the vector of how often it holds each row, in one byte each (a count of 256 has no chance to occur).
    Every statistic here is a function of sums over rows, so that all samples of it are one matrix product.
    """

    def __init__(self, rows: int, bootstrap: Bootstrap, report: Callable[[int, int], None]) -> None:
        self.rows, self.bootstrap, self._report = rows, bootstrap, report
        self._kept: list[npt.NDArray[np.uint8]] = []

    def mean(self, values: npt.ArrayLike) -> Estimate:
        """The mean of `values` `[rows]`."""
        (estimate,) = self.means([np.asarray(values)])
        return estimate

    def means(self, columns: Sequence[npt.ArrayLike], among: Sequence[Mask] | None = None) -> list[Estimate]:
        """The mean of each of `columns` `[rows]`, over the rows where its mask of `among` is true: at least one.

        All of them in one pass. The size of a group varies as well; resamples without any of it are left out.
        """
        masks = np.ones((1, self.rows), dtype=bool) if among is None else np.stack(among)
        values = np.where(masks, np.stack([np.asarray(column, dtype=np.float64) for column in columns]), 0.0)
        counts = np.broadcast_to(masks.sum(axis=1), len(values))
        measured = values.sum(axis=1) / counts
        if counts.max() < FEWEST_ROWS:
            return [Estimate(float(value), None, None) for value in measured]
        sums = self.sums(np.concatenate([values, masks]).T)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = sums[:, : len(measured)] / sums[:, len(measured) :]
        return [
            _estimate(measured[n], drawn[:, n])
            if counts[n] >= FEWEST_ROWS
            else Estimate(float(measured[n]), None, None)
            for n in range(len(measured))
        ]

    def sums(self, columns: Array) -> Array:
        """Column sums of each resample, `[resamples, k]`."""
        return np.concatenate([counts.astype(np.float64) @ columns for counts in self._counts()])

    def _counts(self) -> Iterator[npt.NDArray[np.uint8]]:
        """How often each resample holds each row: some resamples at a time, `[some, rows]`."""
        resamples = self.bootstrap.resamples
        if self._kept:
            yield from self._kept
            return
        random = np.random.default_rng(self.bootstrap.seed)
        drawn, at_once = [], max(1, _DRAWS_AT_ONCE // self.rows)
        for first in range(0, resamples, at_once):
            some = min(at_once, resamples - first)
            picked = random.integers(self.rows, size=(some, self.rows)) + self.rows * np.arange(some)[:, None]
            counts = np.bincount(picked.ravel(), minlength=some * self.rows).astype(np.uint8).reshape(some, self.rows)
            if resamples * self.rows <= _MOST_KEPT:
                drawn.append(counts)
            yield counts
            self._report(first + some, resamples)
        self._kept = drawn


def _estimate(measured: float, drawn: Array) -> Estimate:
    """The percentile interval of what was drawn."""
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) == 0 or np.ptp(drawn) <= ALIKE:
        return Estimate(float(measured), None, None)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(measured), float(low), float(high))


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
