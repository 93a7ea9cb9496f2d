"""How Triton hands a request to a model: ragged inputs flat, and tensors made of the others' shapes.

Pure NumPy; for one valid request the tensors are those of triton-inference-server/backend (`BackendInputCollector`).
For others they are not: a C++ backend joins requests, counts elements per request and checks none, so that an
empty sequence or an id out of range sent to a member there makes its neighbours' answers wrong. Here each request runs
alone, and such a one fails alone. A request is a mapping from tensor name to array, batch dimension first.
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
    """A request does not fit the model."""


@dataclass(frozen=True)
class BatchInput:
    """A tensor made from the shape of the input `source`: `target` gets what `kind` says of it."""

    kind: str
    target: str
    dtype: npt.DTypeLike
    source: str

    def values(self, shape: tuple[int, ...]) -> Array:
        """The tensor for a request whose input `source` has `shape`, batch dimension included.

        Most kinds count the elements of a request, as Triton does, and can tell a ragged batch of 1 only; the kinds of
        item shapes tell each item of a batch.
        """
        count = int(np.prod(shape))
        values: Any = [count]
        if self.kind == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
            values = [0, count]
        elif self.kind == "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
            values = np.zeros(count)
        elif self.kind == "BATCH_ITEM_SHAPE":
            values = [shape[1:]] * shape[0]
        elif self.kind == "BATCH_ITEM_SHAPE_FLATTEN":
            values = shape[1:] * shape[0]
        return np.asarray(values, dtype=self.dtype)


def model_inputs(request: Tensors, ragged: frozenset[str], batch_inputs: Sequence[BatchInput]) -> dict[str, Array]:
    """What the model is fed for a request: ragged inputs flat, others as they are, and those made by `batch_inputs`.

    Raises `RequestError` for a ragged tensor with a batch above 1, which most kinds of `batch_input` cannot describe: a
    C++ backend takes it, and may split the answers wrongly.
    """
    for name in sorted(ragged):
        batch = request[name].shape[0]
        if batch != 1:
            raise RequestError(
                f"input `{name}` has batch {batch}, expected 1: it is ragged, so send one item per request"
            )
    inputs = {name: values.reshape(-1) if name in ragged else values for name, values in request.items()}
    made = {batch_input.target: batch_input.values(request[batch_input.source].shape) for batch_input in batch_inputs}
    return inputs | made
