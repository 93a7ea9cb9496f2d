"""Two convex problems that combining predictions leads to, each solved with a few lines of NumPy.

Both have one minimum, so that no library of optimisers and no starting point is needed. It knows nothing of files.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from preference_core.ensemble.combination import softmax
from preference_training.statistics.intervals import Array, Indices

#: How far above the minimum a result may be, in the unit of the loss; both methods can tell.
TOLERANCE = 1e-10

_MOST_STEPS = 1000
_MOST_HALVINGS = 60


def minimise_on_simplex(gradient_at: Callable[[Array], Array], size: int) -> Array:
    """Weights `[size]`, none negative, sum 1, at which a convex loss with the given gradient is smallest.

    Weight moves from the entry in use with the largest partial derivative to the one with the smallest, as far as the
    loss falls (pairwise Frank-Wolfe; Lacoste-Julien and Jaggi, 2015). The difference of the two bounds what is left to
    be gained; within tolerance, it ends.
    """
    weights = np.full(size, 1 / size)
    for _ in range(_MOST_STEPS):
        gradient = gradient_at(weights)
        giver = int(np.argmax(np.where(weights > 0, gradient, -np.inf)))
        taker = int(np.argmin(gradient))
        if gradient[giver] - gradient[taker] <= TOLERANCE:
            break
        weights = _moved_to_minimum(gradient_at, weights, giver, taker)
    return weights


def _moved_to_minimum(gradient_at: Callable[[Array], Array], weights: Array, giver: int, taker: int) -> Array:
    """`weights` after the best move between two entries: where the slope is 0, or all of it."""

    def moved(amount: float) -> Array:
        result = weights.copy()
        result[giver] -= amount
        result[taker] += amount
        return result

    low, high = 0.0, float(weights[giver])
    for halving in range(_MOST_HALVINGS):
        amount = high if halving == 0 else (low + high) / 2
        gradient = gradient_at(moved(amount))
        slope = float(gradient[taker] - gradient[giver])
        if abs(slope) <= TOLERANCE / 2 or (halving == 0 and slope < 0):
            return moved(amount)
        low, high = (amount, high) if slope < 0 else (low, amount)
    return moved(low)


def fit_log_linear(offset: Array, features: Array, targets: Indices) -> Array:
    """Coefficients `[k]` of the probabilities `softmax(offset + features @ coefficients)` with the least log loss.

    `offset` is `[n, labels]`, `features` `[n, labels, k]`, targets are indices `[n]`. A standard normal prior on the
    coefficients (one among `n` rows) keeps what the rows do not determine at 0. Newton's method with halved steps.
    """
    rows, size = np.arange(len(targets)), features.shape[-1]

    def loss_at(coefficients: Array) -> tuple[float, Array]:
        probabilities = softmax(offset + features @ coefficients)
        right = np.maximum(probabilities[rows, targets], 1e-300)
        return float(-np.log(right).mean() + coefficients @ coefficients / (2 * len(rows))), probabilities

    coefficients: npt.NDArray[np.float64] = np.zeros(size)
    loss, probabilities = loss_at(coefficients)
    for _ in range(_MOST_STEPS):
        expected = np.einsum("nl,nlk->nk", probabilities, features)
        gradient = (expected - features[rows, targets]).mean(axis=0) + coefficients / len(rows)
        second = np.einsum("nl,nlj,nlk->jk", probabilities, features, features, optimize=True) / len(rows)
        hessian = second - expected.T @ expected / len(rows) + np.eye(size) / len(rows)
        direction = np.linalg.solve(hessian, gradient)
        decrement, step = float(gradient @ direction), 1.0
        if decrement <= TOLERANCE:
            break
        while True:
            trial_loss, trial_probabilities = loss_at(coefficients - step * direction)
            if trial_loss <= loss - step * decrement / 4 or step < 1e-9:
                break
            step /= 2
        coefficients, loss, probabilities = coefficients - step * direction, trial_loss, trial_probabilities
    return coefficients
