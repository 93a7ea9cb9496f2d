"""What a model is fed for a request, against the documented semantics of Triton's `batch_input`."""

from typing import Any

import numpy as np
import pytest

from preference_embedded.batching import BatchInput, RequestError, model_inputs


def values(kind: str, *shape: int) -> Any:
    return BatchInput(kind, "target", np.int32, "source").values(shape).tolist()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [3]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [3]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 3]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0, 0, 0]),
        ("BATCH_ITEM_SHAPE", [[3]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3]),
    ],
)
def test_every_kind_of_batch_input_describes_the_request(kind: str, expected: list[Any]) -> None:
    assert values(kind, 1, 3) == expected


def test_item_shapes_repeat_for_every_item_of_a_request_as_in_tritons_own_example() -> None:
    assert values("BATCH_ITEM_SHAPE", 2, 3, 1) == [[3, 1], [3, 1]]
    assert values("BATCH_ITEM_SHAPE_FLATTEN", 2, 3, 1) == [3, 1, 3, 1]


def test_a_batch_input_has_the_type_that_is_asked_for() -> None:
    made = BatchInput("BATCH_ELEMENT_COUNT", "target", np.float32, "source").values((1, 3))
    assert made.dtype == np.float32


def test_ragged_inputs_are_fed_flat_and_others_as_they_are() -> None:
    request = {"ids": np.array([[1, 2]], np.int32), "x": np.ones((1, 3), np.float32)}
    bounds = BatchInput("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", "bounds", np.int32, "ids")
    inputs = model_inputs(request, frozenset({"ids"}), [bounds])
    assert inputs["ids"].tolist() == [1, 2]
    assert inputs["x"].shape == (1, 3)
    assert inputs["bounds"].tolist() == [0, 2]


def test_a_ragged_request_with_a_batch_above_one_is_refused_by_name_value_and_expectation() -> None:
    with pytest.raises(RequestError, match="input `ids` has batch 2, expected 1"):
        model_inputs({"ids": np.zeros((2, 4), np.int32)}, frozenset({"ids"}), [])
