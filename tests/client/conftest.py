"""A real gRPC server on a real socket, whose answers a test decides, in the place of Triton."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from preference_client.app import main
from preference_core import tensors

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
MEMBERS = ("gemma", "llama")


@dataclass(frozen=True)
class Received:
    """One request as the server saw it."""

    id: str
    model: str
    prompt: tuple[str, ...]
    response_a: tuple[str, ...]
    response_b: tuple[str, ...]
    weights: tuple[float, ...] | None
    shapes: dict[str, tuple[int, ...]]


def expected_probabilities(prompt: str, labels: int = 3) -> np.ndarray:
    """What the server answers for the first turn of a prompt: numbers that only this text gives. FP32, sum 1."""
    raw = np.frombuffer(hashlib.sha256(prompt.encode()).digest()[: 2 * labels], dtype="<u2").astype(np.float64) + 1
    return (raw / raw.sum()).astype(np.float32)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers like the ensembles. `before(received, context)` may wait or abort; `change(response)` may spoil it.

    `describing(context)` may do so before the server says what it is.
    """

    def __init__(self) -> None:
        self.parameters = {tensors.LABELS_PARAMETER: ",".join(LABELS), tensors.MEMBERS_PARAMETER: ",".join(MEMBERS)}
        self.version = "1"
        self.models = {tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC}
        self.before: Callable[[Received, Any], None] = lambda received, context: None
        self.change: Callable[[Any], None] = lambda response: None
        self.describing: Callable[[Any], None] = lambda context: None
        self.described = 0
        self.dropped = 0
        self.received = 0
        self.most_under_way = 0
        self.last: Received | None = None
        self._under_way = 0
        self._lock = threading.Lock()
        self._server: Any = None
        self.url = ""

    def start(self, port: int = 0, credentials: Any = None, address: str = "") -> None:
        """Serves on a port of the loopback, or an address; 0 picks a free port."""
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(max_workers=40), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = address or f"127.0.0.1:{port}"
        bound = (
            self._server.add_insecure_port(address)
            if credentials is None
            else self._server.add_secure_port(address, credentials)
        )
        self.url = f"localhost:{bound}"
        self._server.start()

    def stop(self) -> None:
        """Ends at once; calls under way fail."""
        if self._server is not None:
            self._server.stop(grace=None).wait(5)
            self._server = None

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self.described += 1
        self.describing(context)
        if request.name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        config = model_config_pb2.ModelConfig(name=request.name)
        for key, value in self.parameters.items():
            config.parameters[key].string_value = value
        return service_pb2.ModelConfigResponse(config=config)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelMetadataResponse(name=request.name, versions=[self.version])

    def ModelInfer(self, request: Any, context: Any) -> Any:
        received = _received(request)
        with self._lock:
            self.received += 1
            self.last = received
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
        try:
            self.before(received, context)
            response = self._response(received)
            self.change(response)
            return response
        finally:
            with self._lock:
                self._under_way -= 1

    def _response(self, received: Received) -> Any:
        labels = self.parameters[tensors.LABELS_PARAMETER].count(",") + 1
        members = self.parameters[tensors.MEMBERS_PARAMETER].count(",") + 1
        probabilities = expected_probabilities(received.prompt[0], labels)
        counts = np.full(members, sum(map(len, received.prompt)), dtype=np.int32)
        dropped = np.full((members, 3), self.dropped, dtype=np.int32)
        response = service_pb2.ModelInferResponse(model_name=received.model, model_version=self.version, id=received.id)
        for tensor, array in (
            (tensors.dropped_tokens(members), dropped),
            (tensors.probabilities(labels), probabilities),
            (tensors.member_probabilities(members, labels), np.tile(probabilities, (members, 1))),
            (tensors.token_counts(members), counts),
        ):
            response.outputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, *tensor.dims])
            response.raw_output_contents.append(array.tobytes())
        return response


def _received(request: Any) -> Received:
    raw = {tensor.name: data for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True)}
    texts = {
        field: tuple(turn.decode() for turn in deserialize_bytes_tensor(raw[field]).tolist())
        for field in tensors.FIELDS
    }
    weights = tuple(np.frombuffer(raw["weights"], "<f4").tolist()) if "weights" in raw else None
    shapes = {tensor.name: tuple(tensor.shape) for tensor in request.inputs}
    return Received(id=request.id, model=request.model_name, weights=weights, shapes=shapes, **texts)


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    """A server that answers at once; its fields change what it does."""
    server = FakeTriton()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def expected() -> Callable[[str], np.ndarray]:
    """The probabilities that the server gives for a prompt."""
    return expected_probabilities


@pytest.fixture
def command() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `preference-score` with some arguments in a process of its own, which runs the lines `before` first."""
    started = []

    def start(*arguments: object, before: str = "", **options: Any) -> "subprocess.Popen[str]":
        # Whatever ignores signals around the tests (`nohup`, a shell's `&`), here they arrive.
        signals = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); s.signal(s.SIGHUP, s.SIG_DFL)"
        program = f"{signals}\n{before}\nfrom preference_client.app import main; main()"
        line = [sys.executable, "-c", program, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        started.append(subprocess.Popen(line, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:  # Closes its pipes.
            process.kill()


@dataclass(frozen=True)
class Finished:
    """What `preference-score` has printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs `preference-score` to its end, in this process."""

    def finish(*arguments: object, **environment: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["preference-score", *map(str, arguments)])
        for name, value in {"COLUMNS": "200", **environment}.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Finished(int(ended.value.code or 0), *capsys.readouterr())

    return finish


@pytest.fixture
def battles_csv(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a CSV file of so many battles; the prompt of row n is `prompt n`, its id `id-n`."""

    def write(rows: int) -> Path:
        path = tmp_path / "battles.csv"
        with path.open("w") as file:
            file.write("id,prompt,response_a,response_b\n")
            file.writelines(f'id-{n},"[""prompt {n}""]","[""yes""]","[""no""]"\n' for n in range(1, rows + 1))
        return path

    return write


def battles(count: int) -> Iterator[dict[str, str]]:
    return ({"id": f"id-{n}", "prompt": f"prompt {n}", "response_a": "yes", "response_b": "no"} for n in range(count))


@pytest.fixture
def many() -> Callable[[int], Iterator[dict[str, str]]]:
    """So many battles with ids and prompts that tell them apart."""
    return battles
