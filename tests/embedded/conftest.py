"""Small ONNX models and repositories, and real servers on them."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from tritonclient.utils import np_to_triton_dtype

from preference_embedded.launcher import Options, TritonServer

RAGGED_CONFIG = """
name: "sums"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true } ]
output [ { name: "sums" data_type: TYPE_FP32 dims: [ 2 ] } ]
batch_input [
  { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO target_name: "bounds" data_type: TYPE_INT32 source_input: "ids" },
  { kind: BATCH_MAX_ELEMENT_COUNT_AS_SHAPE target_name: "longest" data_type: TYPE_INT32 source_input: "ids" }
]
dynamic_batching { max_queue_delay_microseconds: 20000 }
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""

DENSE_CONFIG = """
name: "doubled"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
dynamic_batching { max_queue_delay_microseconds: 20000 }
"""

#: A graceful stop takes Triton some seconds; only the tests about it wait for one.
HASTY_STOP_S = 0.1

Array = npt.NDArray[np.generic]


def sums_model() -> onnx.ModelProto:
    """Of ids packed end to end: each sequence's sum, and the length of the longest sequence in its run.

    `sums[i] = prefix[bounds[i + 1]] - prefix[bounds[i]]`, with `prefix` the running sum that begins with 0. The ids
    index a table of 100 rows, so that an id outside makes ONNX Runtime fail.
    """
    table = helper.make_tensor("table", TensorProto.FLOAT, [100], [float(i) for i in range(100)])
    constants = {"axis": [0], "zero": [0], "one": [1], "end": [2**31 - 1], "minus_one": [-1]}
    initializers = [table, helper.make_tensor("nothing", TensorProto.FLOAT, [1], [0.0])]
    initializers += [helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in constants.items()]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["values"]),
        helper.make_node("Squeeze", ["axis"], ["axis_scalar"]),
        helper.make_node("CumSum", ["values", "axis_scalar"], ["running"]),
        helper.make_node("Concat", ["nothing", "running"], ["prefix"], axis=0),
        helper.make_node("Slice", ["bounds", "one", "end", "axis"], ["ends"]),
        helper.make_node("Slice", ["bounds", "zero", "minus_one", "axis"], ["starts"]),
        helper.make_node("Gather", ["prefix", "ends"], ["until_end"]),
        helper.make_node("Gather", ["prefix", "starts"], ["until_start"]),
        helper.make_node("Sub", ["until_end", "until_start"], ["sum"]),
        helper.make_node("Shape", ["longest"], ["length"]),
        helper.make_node("Cast", ["length"], ["length_float"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["sum"], ["sequences"]),
        helper.make_node("Expand", ["length_float", "sequences"], ["lengths"]),
        helper.make_node("Unsqueeze", ["sum", "one"], ["sum_column"]),
        helper.make_node("Unsqueeze", ["lengths", "one"], ["length_column"]),
        helper.make_node("Concat", ["sum_column", "length_column"], ["sums"], axis=1),
    ]
    inputs = [value(name, TensorProto.INT32, [f"{name}_size"]) for name in ("ids", "bounds", "longest")]
    return model_of(nodes, inputs, [value("sums", TensorProto.FLOAT, ["sequences", 2])], initializers)


def doubled_model() -> onnx.ModelProto:
    """`y = x + x`, FP32 `[batch, 3]`."""
    x, y = (value(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    return model_of([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y])


def value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """Description of an input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A checked model."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass(frozen=True)
class Client:
    """Asks a server over real gRPC."""

    connection: triton.InferenceServerClient

    def ask(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Answers by output name."""
        tensors = []
        for name, values in inputs.items():
            tensor = triton.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
            tensor.set_data_from_numpy(values)
            tensors.append(tensor)
        result = self.connection.infer(model, tensors, client_timeout=30)
        return {name: result.as_numpy(name) for name in outputs}

    def executions(self, model: str) -> tuple[int, int]:
        """How many inferences and how many executions there were."""
        statistics = self.connection.get_inference_statistics(model).model_stats[0]
        return statistics.inference_count, statistics.execution_count


@pytest.fixture(scope="session")
def configs() -> Mapping[str, str]:
    """The text of config.pbtxt for each of `models`."""
    return {"sums": RAGGED_CONFIG, "doubled": DENSE_CONFIG}


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Path]:
    """Writes one model into a repository: `write_model(repository, name, config, model)`."""

    def write(repository: Path, name: str, config: str, model: onnx.ModelProto | bytes | str | None = None) -> Path:
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(config)
        if isinstance(model, onnx.ModelProto):
            onnx.save(model, version / "model.onnx")
        elif isinstance(model, bytes):
            (version / "model.onnx").write_bytes(model)
        elif model is not None:
            (version / "model.py").write_text(model)
        return version

    return write


@pytest.fixture(scope="session")
def models() -> Mapping[str, onnx.ModelProto]:
    """The models of this folder by name."""
    return {"sums": sums_model(), "doubled": doubled_model()}


@pytest.fixture(scope="module")
def repository(
    tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path], models: Mapping[str, onnx.ModelProto]
) -> Path:
    """A repository with a ragged and a dense model, and a ragged one that waits until its batch is full."""
    folder = tmp_path_factory.mktemp("repository")
    write_model(folder, "sums", RAGGED_CONFIG, models["sums"])
    write_model(folder, "doubled", DENSE_CONFIG, models["doubled"])
    patient = RAGGED_CONFIG.replace('name: "sums"\nbackend', 'name: "patient"\nbackend').replace("20000", "10000000")
    write_model(folder, "patient", patient, models["sums"])
    return folder


@pytest.fixture(scope="session")
def hasty() -> Callable[..., Options]:
    """Options for a server of a repository without manifest that is killed rather than stopped."""

    def options(repository: Path, **others: Any) -> Options:
        return Options(repository, verify=False, stop_timeout_s=HASTY_STOP_S, **others)

    return options


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    """A real server on `repository`."""
    with TritonServer(Options(repository, verify=False, stop_timeout_s=HASTY_STOP_S)) as running:
        yield running


@pytest.fixture
def connect() -> Iterator[Callable[[str], Client]]:
    """Makes clients, closed at the end of the test."""
    connections = []

    def open_connection(url: str) -> Client:
        connections.append(triton.InferenceServerClient(url))
        return Client(connections[-1])

    yield open_connection
    for connection in connections:
        connection.close()


@pytest.fixture
def client(server: TritonServer, connect: Callable[[str], Client]) -> Client:
    """A client of `server`."""
    return connect(server.urls["grpc"])


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Logs of servers that fail on purpose stay among the tests' files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., bool]:
    """Waits for a condition; whether it came true."""

    def wait(condition: Callable[[], bool], timeout_s: float = 60.0) -> bool:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    return wait


@pytest.fixture(scope="session")
def processes_naming() -> Callable[[str], list[str]]:
    """Command lines of running processes that contain a text."""

    def find(text: str) -> list[str]:
        listed = subprocess.run(["ps", "-eo", "pid,args", "-ww"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if text in line and "ps -eo" not in line]

    return find
