"""How Triton's C++ backends make one batch of several requests: ragged concatenation, `batch_input`, and the way back.

Pure NumPy; the semantics are those of triton-inference-server/backend (`BackendInputCollector`). A request is a mapping
from tensor name to array, batch dimension first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preference_core.errors import UserError

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

KINDS = (
    "BATCH_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "BATCH_ITEM_SHAPE",
    "BATCH_ITEM_SHAPE_FLATTEN",
)


class RequestError(UserError):
    """A request does not fit the model; its neighbours in the batch are not affected."""


@dataclass(frozen=True)
class BatchInput:
    """A tensor made from how the requests were batched: `target` gets what `kind` says of the input `source`."""

    kind: str
    target: str
    dtype: npt.DTypeLike
    source: str

    def values(self, shapes: Sequence[tuple[int, ...]]) -> Array:
        """The tensor for requests whose input `source` has `shapes`, batch dimension included.

        Elements are counted per request, as Triton does; hence ragged requests have a batch of 1.
        """
        counts = np.array([np.prod(shape, dtype=np.int64) for shape in shapes], dtype=np.int64)
        values: Array
        if self.kind == "BATCH_ELEMENT_COUNT":
            values = counts
        elif self.kind == "BATCH_ACCUMULATED_ELEMENT_COUNT":
            values = counts.cumsum()
        elif self.kind == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
            values = np.concatenate([[0], counts.cumsum()])
        elif self.kind == "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
            values = np.zeros(counts.max(initial=0), dtype=np.int64)
        else:
            items = [shape[1:] for shape in shapes for _ in range(shape[0])]
            values = np.array(items, dtype=np.int64).reshape(len(items), -1)
            values = values.reshape(-1) if self.kind == "BATCH_ITEM_SHAPE_FLATTEN" else values
        return values.astype(self.dtype)


def check_request(request: Tensors, ragged: frozenset[str]) -> None:
    """Raises `RequestError` for a ragged tensor with a batch above 1, which `batch_input` could not describe."""
    for name in sorted(ragged):
        batch = request[name].shape[0]
        if batch != 1:
            raise RequestError(
                f"input `{name}` has batch {batch}, expected 1: it is ragged, so send one item per request"
            )


def runs_of(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Divides requests into runs: indices of requests of similar length that, padded, fill at most `slots`.

    A request longer than `slots` runs alone. Every index is in exactly one run.
    """
    runs: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if runs and (len(runs[-1]) + 1) * lengths[index] <= slots:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def merge(requests: Sequence[Tensors], ragged: frozenset[str], batch_inputs: Sequence[BatchInput]) -> dict[str, Array]:
    """One batch of several requests: ragged inputs flat, end to end; others stacked along the batch dimension."""
    merged: dict[str, Array] = {}
    for name in requests[0]:
        parts = [request[name].reshape(-1) if name in ragged else request[name] for request in requests]
        merged[name] = np.concatenate(parts)
    for batch_input in batch_inputs:
        merged[batch_input.target] = batch_input.values([request[batch_input.source].shape for request in requests])
    return merged


def split(outputs: Tensors, batches: Sequence[int]) -> list[dict[str, Array]]:
    """The way back: each request's share of every output, by the batch of each request."""
    ends = np.cumsum(batches).tolist()
    for name, values in outputs.items():
        if values.ndim == 0 or values.shape[0] != ends[-1]:
            raise ValueError(
                f"output `{name}` has shape {list(values.shape)}, expected [{ends[-1]}, ...] for this batch"
            )
    return [
        {name: values[end - batch : end] for name, values in outputs.items()}
        for end, batch in zip(ends, batches, strict=True)
    ]
