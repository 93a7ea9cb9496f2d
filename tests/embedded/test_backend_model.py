"""The stub's side of the backend, with stand-ins for Triton's objects: only Triton's own stub has the real ones."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import preference_embedded
from preference_embedded.batching import RequestError

MODEL = Path(preference_embedded.__file__).with_name("backends") / "onnxruntime/model.py"


@dataclass
class TritonError:
    message: str
    code: str
    CANCELLED = "CANCELLED"
    INVALID_ARG = "INVALID_ARG"
    INTERNAL = "INTERNAL"


@dataclass
class Tensor:
    label: str
    values: Any

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> Any:
        return self.values


@dataclass
class InferenceResponse:
    tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


@dataclass
class Request:
    values: int
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    def inputs(self) -> list[Tensor]:
        return [Tensor("x", np.array([self.values]))]


class Doubling:
    """An engine that doubles, refuses 13, fails with 14, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, request: Any) -> Any:
        x = int(request["x"][0])
        self.asked.append(x)
        if x == 13:
            raise RequestError("13 is refused")
        if x == 14:
            raise MemoryError("no memory")
        return {"y": np.array([2 * x])}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend's model without an engine."""
    triton = ModuleType("triton_python_backend_utils")
    triton.__dict__.update(TritonError=TritonError, Tensor=Tensor, InferenceResponse=InferenceResponse)
    monkeypatch.setitem(sys.modules, triton.__name__, triton)
    spec = importlib.util.spec_from_file_location("backend_model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()


def test_each_request_gets_its_own_response_in_order(model: Any) -> None:
    model._session = Doubling()
    responses = model.execute([Request(1), Request(13), Request(3)])
    assert responses[0].tensors[0].values.tolist() == [2]
    assert responses[1].error == TritonError("13 is refused", TritonError.INVALID_ARG)
    assert responses[2].tensors[0].values.tolist() == [6]


def test_a_cancelled_request_is_answered_without_work(model: Any) -> None:
    model._session = Doubling()
    responses = model.execute([Request(1, cancelled=True), Request(2)])
    assert responses[0].error.code == TritonError.CANCELLED
    assert responses[1].tensors[0].values.tolist() == [4]
    assert model._session.asked == [2]


def test_no_exception_leaves_execute_and_neighbours_are_answered(model: Any) -> None:
    model._session = Doubling()
    responses = model.execute([Request(14), Request(2)])
    assert responses[0].error == TritonError("MemoryError: no memory", TritonError.INTERNAL)
    assert responses[1].tensors[0].values.tolist() == [4]
