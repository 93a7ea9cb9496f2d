"""Expected calibration error, with an interval that also holds for calibrated forecasts.

Arrays in, numbers out. It knows nothing of battles or models.
"""

import numpy as np

from preference_training.statistics.intervals import ALIKE, FEWEST_ROWS, LEVEL, Array, Estimate, Indices, Resamples

#: Equal-width bins of the confidence, as Guo et al. (2017) use them.
BINS = 15

#: How finely the lower bound is found, as parts of the measured error.
_PARTS = 100


def calibration_estimate(probabilities: Array, targets: Indices, resamples: Resamples) -> Estimate:
    """Expected calibration error of the most probable label over equal-width bins (Guo et al., 2017).

    It is a sum of absolute gaps, which noise can only widen: the error of 300 calibrated forecasts comes out at about
    0.06, and that of a resample farther still from the truth. So the upper bound is that of the percentile bootstrap,
    which is too high rather than too low. The lower one inverts a test: it is the smallest error, of gaps in proportion
    to the measured ones, with which the resampled noise would bring out the measured error in one of forty cases. For
    no gaps at all that is consistency resampling (Bröcker and Smith, 2007): 0 is in the interval of forecasts that may
    be calibrated. The value itself is not corrected. docs/decisions.md says how often the interval holds.
    """
    confidence = probabilities.max(axis=1)
    bin_of_row = np.minimum((confidence * BINS).astype(int), BINS - 1)
    columns = np.zeros((len(targets), BINS))
    columns[np.arange(len(targets)), bin_of_row] = (probabilities.argmax(axis=1) == targets) - confidence
    gaps = columns.sum(axis=0) / len(targets)
    error = float(np.abs(gaps).sum())
    if len(targets) < FEWEST_ROWS:
        return Estimate(error, None, None)
    noise = resamples.sums(columns) / len(targets) - gaps

    def highest(part: float) -> float:
        """The error that gaps of `part` of the measured size come out at, or above, in one of forty cases."""
        return float(np.quantile(np.abs(part * gaps + noise).sum(axis=1), (1 + LEVEL) / 2))

    if np.ptp(noise, axis=0).max() <= ALIKE:
        return Estimate(error, None, None)
    part = next((part for part in np.linspace(0, 1, _PARTS, endpoint=False) if highest(part) >= error), 1.0)
    return Estimate(error, part * error, highest(1))
