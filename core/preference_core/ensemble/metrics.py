"""Scores of predictions against human judgements.

Arrays in, numbers out. Predictions meet labels only through `joined_by_id`: never by position.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from preference_core.errors import UserError

Array = npt.NDArray[np.float64]
T = TypeVar("T")
U = TypeVar("U")

#: Probabilities are clipped to this before their logarithm is taken, as scikit-learn's `log_loss` does for float64.
_SMALLEST = float(np.finfo(np.float64).eps)

_TIE = "winner_tie"
_NO_TIE = "A binary ensemble has no tie: leave such rows out."


def joined_by_id(predictions: Mapping[str, T], labelled: Mapping[str, U]) -> list[tuple[str, T, U]]:
    """Pairs of prediction and label with the same id, in the order of `labelled`; the sets of ids must be equal."""
    missing = [key for key in labelled if key not in predictions]
    extra = [key for key in predictions if key not in labelled]
    if missing or extra:
        raise UserError(
            f"Predictions and labels do not belong together: {len(missing)} labelled ids have no prediction"
            f"{_example(missing)}, {len(extra)} predictions have no label{_example(extra)}",
            hint="Score the same file that holds the labels.",
        )
    return [(key, predictions[key], label) for key, label in labelled.items()]


def log_loss(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Mean negative log probability of the right label: `probabilities` `[n, labels]`, target indices `[n]`."""
    return float(log_losses(probabilities, targets).mean())


def log_losses(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> Array:
    """Negative log probability of the right label, per row `[n]`."""
    values, indices = _checked(probabilities, targets)
    right = values[np.arange(len(indices)), indices]
    result: Array = -np.log(np.clip(right, _SMALLEST, 1.0))
    return result


def accuracy(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Share of rows whose most probable label is the right one."""
    values, indices = _checked(probabilities, targets)
    return float((values.argmax(axis=1) == indices).mean())


def class_prior_log_loss(targets: npt.ArrayLike, labels: int) -> float:
    """Log loss of always predicting the shares of `targets` themselves, of so many `labels`."""
    indices = np.asarray(targets, dtype=np.int64)
    shares = np.bincount(indices, minlength=labels) / len(indices)
    return log_loss(np.broadcast_to(shares, (len(indices), labels)), indices)


def swap_consistency(original: npt.ArrayLike, swapped_back: npt.ArrayLike) -> dict[str, float]:
    """How much predictions depend on the order of the responses.

    Both arrays `[n, labels]` are in the original's label order. Returns the share of rows with the same decision, and
    the mean and maximum absolute difference of probabilities.
    """
    a, b = np.asarray(original, dtype=np.float64), np.asarray(swapped_back, dtype=np.float64)
    difference = np.abs(a - b)
    return {
        "same_decision": float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        "mean_difference": float(difference.mean()),
        "max_difference": float(difference.max()),
    }


def is_labelled(row: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Whether a data row has the columns that `target_of_row` reads."""
    return "winner" in row or all(label in row for label in labels)


def target_of_row(row: Mapping[str, Any], labels: Sequence[str]) -> int:
    """Index of the label of a data row: one-hot label columns, or a `winner` column that names the label or its end."""
    if all(label in row for label in labels):
        marked = [index for index, label in enumerate(labels) if _is_one(row[label])]
        if len(marked) == 1:
            return marked[0]
        shown = ", ".join(f"`{label}` is `{row[label]}`" for label in labels)
        hint = _NO_TIE if len(labels) == 2 and _is_one(row.get(_TIE)) else None
        raise UserError(f"Expected exactly one of {', '.join(labels)} to be 1: {shown}", hint)
    if "winner" not in row:
        raise UserError(f"The row has no label: expected columns {', '.join(labels)}, or `winner`")
    winner = str(row["winner"]).strip()
    ends = [label.removeprefix("winner_") for label in labels]
    for index, names in enumerate(zip(labels, ends, strict=True)):
        if winner in names:
            return index
    is_tie = len(labels) == 2 and winner in (_TIE, "tie")
    raise UserError(f"`winner` is `{winner}`, expected {' or '.join(ends)}", _NO_TIE if is_tie else None)


def _is_one(value: Any) -> bool:
    return str(value).strip() in ("1", "1.0", "True", "true")


def _checked(probabilities: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
    values = np.asarray(probabilities, dtype=np.float64)
    indices = np.asarray(targets, dtype=np.int64)
    if values.ndim != 2 or indices.shape != values.shape[:1] or len(indices) == 0:
        raise ValueError(
            f"probabilities have shape {values.shape}, targets {indices.shape}; expected [n, labels] and [n]"
        )
    if not np.isfinite(values).all():
        raise ValueError("probabilities are not finite")
    return values, indices


def _example(ids: Sequence[str]) -> str:
    return f" (such as `{ids[0]}`)" if ids else ""
