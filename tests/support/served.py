"""`preference-serve` as a process, what it has started, and battles to send it."""

import http.client
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from preference_core import tensors

ROOT = Path(__file__).parents[2]
TEXTS = {"prompt": b"Why?", "response_a": b"Because.", "response_b": b"No idea."}
JSON_BATTLE = {
    "inputs": [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [text.decode()]} for name, text in TEXTS.items()
    ]
}


@dataclass(frozen=True)
class Served:
    """A running `preference-serve`: its process, `host:port` of each service, and what it said."""

    process: subprocess.Popen[str]
    urls: dict[str, str]
    said: Path

    @property
    def triton(self) -> int | None:
        """Process id of the tritonserver that runs now; None while there is none."""
        for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in map(int, children.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver":
                    return pid
        return None

    def traces(self) -> list[Any]:
        """Processes, shared memory and folders of servers that it has started."""
        name = f"preference-{self.process.pid}-"
        listed = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
        found: list[Any] = [line for line in listed.splitlines() if name in line]
        return found + [
            path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob(f"{name}*")
        ]

    def memory_mib(self) -> dict[str, float]:
        """Memory of its process and of each that the tritonserver has started, by name."""
        triton = self.triton
        pids = [self.process.pid, *((triton, *children_of(triton)) if triton else ())]
        return {f"{Path(f'/proc/{pid}/comm').read_text().strip()} {pid}": memory_mib(pid) for pid in pids}

    def metric(self, name: str) -> float:
        """The value of one of the door's own metrics."""
        with_name = [line for line in get(self.urls["metrics"], "/metrics")[1].splitlines() if line.startswith(name)]
        return float(with_name[0].split()[-1])


@contextmanager
def serving(log: Path, *options: str, config: str = "configs/demo.toml", folder: Path = ROOT) -> Iterator[Served]:
    """`preference-serve` on the demo, or on another configuration in its folder, on free ports."""
    command = Path(os.environ["PREFERENCE_SERVER_PYTHON"]).with_name("preference-serve")
    line = [str(command), config, "--json", "--log-file", str(log), *options]
    line += [f"--{service}-port=0" for service in ("grpc", "http", "metrics")]
    said = log.with_suffix(".stderr")
    with (
        said.open("w") as file,
        subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=file, text=True) as serve,
    ):
        try:
            assert serve.stdout is not None
            ready = serve.stdout.readline()
            assert ready, said.read_text()
            yield Served(serve, {name: json.loads(ready)[name] for name in ("grpc", "http", "metrics")}, said)
        finally:
            serve.terminate()
            serve.wait(60)


def children_of(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for children in found for child in children]


def memory_mib(pid: int) -> float:
    """Resident memory of a process that it does not share."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return (int(fields["Private_Dirty"].split()[0]) + int(fields["Private_Clean"].split()[0])) / 1024


def battle_request(model: str = tensors.ENSEMBLE, words: int = 1) -> Any:
    """One battle; each text is repeated `words` times."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, text in TEXTS.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        data = (text + b" ") * words
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    return request


def get(url: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text of the answer to a GET, or to a POST of `body`."""
    connection = http.client.HTTPConnection(url, timeout=20)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
