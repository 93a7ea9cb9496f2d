"""Envoy with the project's own configuration, in front of two real servers on the demo's repository."""

import csv
import http.client
import itertools
import json
import os
import re
import runpy
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import yaml
from demo_files import BATTLES, PREDICTIONS, ROOT, demo_repository, repeated_battles
from spans import Collector, collecting
from tritonclient.grpc import service_pb2, service_pb2_grpc

from preference_client import Scorer, Tls
from preference_core import tensors
from preference_core.errors import ServerError
from preference_embedded import ports
from preference_embedded.launcher import Options, TritonServer

CONFIGURATION = ROOT / "docker" / "envoy"
TOOLS = "PREFERENCE_DEPLOY_TOOLS"
SERVER_PYTHON = "PREFERENCE_SERVER_PYTHON"
TOKEN = "s3cret"
TEXTS = {"prompt": "Why?", "response_a": "Because.", "response_b": "No idea."}
pytestmark = pytest.mark.skipif(TOOLS not in os.environ, reason="`make check-deploy` runs the tests that need Envoy")


@dataclass(frozen=True)
class Front:
    """A running Envoy; `secrets` is its folder of certificates and tokens, with a client's in it."""

    process: "subprocess.Popen[bytes]"
    port: int
    admin: int
    secrets: Path

    def channel(self, *, certificate: bool = True) -> grpc.Channel:
        """A connection of a client that shows its certificate, or none."""
        ca, key, crt = ((self.secrets / name).read_bytes() for name in ("clients.crt", "client.key", "client.crt"))
        shown = grpc.ssl_channel_credentials(ca, key, crt) if certificate else grpc.ssl_channel_credentials(ca)
        return grpc.secure_channel(f"localhost:{self.port}", shown)

    def get(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> int:
        """Status of an HTTP request without a certificate."""
        context = ssl.create_default_context(cafile=str(self.secrets / "clients.crt"))
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=10)
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def ask_admin(self, path: str, method: str = "GET") -> str:
        """What Envoy's own interface answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=10)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def score(self, battles: Path, output: Path) -> "subprocess.Popen[str]":
        """Starts `preference-score` through this front."""
        line = [str(Path(sys.executable).with_name("preference-score")), str(battles), "-o", str(output)]
        line += ["--url", f"localhost:{self.port}", "--root-certificates", str(self.secrets / "clients.crt")]
        line += ["--private-key", str(self.secrets / "client.key")]
        line += ["--certificate-chain", str(self.secrets / "client.crt")]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificate(folder: Path, name: str) -> None:
    """Writes NAME.crt and NAME.key, for localhost, vouched for by clients.crt; replaces older ones by a rename."""
    new = folder / f"new-{name}"
    line = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{new}.key", "-out", f"{new}.csr")
    openssl(*line, "-subj", f"/CN={name}")
    (folder / "san").write_text("subjectAltName=DNS:localhost")
    authority = ("-CA", folder / "clients.crt", "-CAkey", folder / "ca.key", "-CAcreateserial")
    openssl("x509", "-req", "-in", f"{new}.csr", *authority, "-extfile", folder / "san", "-out", f"{new}.crt")
    for suffix in ("key", "crt"):
        Path(f"{new}.{suffix}").replace(folder / f"{name}.{suffix}")


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the stack mounts at /etc/preference, and a client's certificate."""
    folder = tmp_path_factory.mktemp("secrets")
    authority = ("-keyout", folder / "ca.key", "-out", folder / "clients.crt")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *authority, "-days", "1", "-subj", "/CN=authority")
    certificate(folder, "server")
    certificate(folder, "client")
    (folder / "tokens").write_text(f"another\n{TOKEN}\n")
    return folder


def configured(
    folder: Path, secrets: Path, upstream: list[TritonServer], change: Callable[[str], str] = str
) -> tuple[Path, int, int]:
    """The project's configuration with this machine's paths, ports and servers; its file, port and admin port."""
    shutil.copytree(CONFIGURATION, folder)
    for path in folder.iterdir():
        text = path.read_text().replace("/etc/preference", str(secrets)).replace("/etc/envoy", str(folder))
        path.write_text(change(text))
    envoy: dict[str, Any] = yaml.safe_load((folder / "envoy.yaml").read_text())
    front, admin, metrics = ports.resolve("127.0.0.1", {"front": 0, "admin": 0, "metrics": 0}).values()
    envoy["admin"]["address"]["socket_address"]["port_value"] = admin
    for listener, port in zip(envoy["static_resources"]["listeners"], (front, metrics), strict=True):
        listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": port}
    for cluster in envoy["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        if cluster["name"] == "admin":
            endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = admin
            continue
        protocol = cluster["name"].removeprefix("triton-")
        assert endpoints["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["address"] == "triton"
        endpoints["lb_endpoints"] = [
            {
                "endpoint": {
                    "address": _address(server.urls[protocol]),
                    "health_check_config": {"port_value": int(server.urls["http"].rpartition(":")[2])},
                }
            }
            for server in upstream
        ]
    (folder / "envoy.yaml").write_text(yaml.safe_dump(envoy))
    return folder / "envoy.yaml", front, admin


def _address(url: str) -> dict[str, Any]:
    host, _, port = url.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where the servers send their traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def start_server(
    collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., TritonServer]]:
    """Starts real servers, traced as in the container; on the ports of one that ended, if asked."""
    tracing = runpy.run_path(str(ROOT / "docker" / "entrypoint.py"))["tracing"](collector.url)
    started: list[TritonServer] = []
    logs = tmp_path_factory.mktemp("servers")

    def start(like: TritonServer | None = None, repository: Path | None = None) -> TritonServer:
        python = Path(os.environ.get(SERVER_PYTHON) or ROOT / ".venv-server/bin/python")
        chosen = {f"{name}_port": int(url.rpartition(":")[2]) for name, url in (like.urls if like else {}).items()}
        log = logs / f"{len(started)}.log"
        options = Options(
            repository or demo_repository(),
            python=python,
            log_file=log,
            start_timeout_s=60.0,
            stop_timeout_s=5.0,  # The bundled release often needs all of it, and holds battles as long.
            extra_arguments=tuple(tracing),
            **chosen,
        )
        server = TritonServer(options)
        try:
            server.start()
        except ServerError:  # The bundled release sometimes hangs or crashes while its models load.
            server = TritonServer(options)
            server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop(0.0)


@pytest.fixture(scope="module")
def servers(start_server: Callable[..., TritonServer]) -> list[TritonServer]:
    """Two servers; tests that end one put another in its place."""
    return [start_server(), start_server()]


@pytest.fixture
def start_front(servers: list[TritonServer], secrets: Path, tmp_path: Path) -> Iterator[Callable[..., Front]]:
    """Starts Envoy, with a change of its configuration if asked, and waits until both servers are ready for it."""
    started: list[Front] = []

    def start(change: Callable[[str], str] = str) -> Front:
        path, port, admin = configured(tmp_path / f"envoy-{len(started)}", secrets, servers, change)
        line = [f"{os.environ[TOOLS]}/envoy", "--config-path", str(path), "--disable-hot-restart", "--concurrency", "1"]
        line += ["--drain-time-s", "3"]
        with (tmp_path / "envoy.log").open("ab") as log:
            front = Front(subprocess.Popen(line, stdout=log, stderr=log), port, admin, secrets)
        started.append(front)
        eventually(lambda: ready_servers(front) == 2)
        return front

    yield start
    for front in started:
        front.process.kill()
        front.process.wait()


@pytest.fixture
def front(start_front: Callable[..., Front]) -> Front:
    """Envoy as configured."""
    return start_front()


def eventually(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Waits until a condition holds; an error counts as not yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)


def ready_servers(front: Front) -> int:
    """To how many servers gRPC may go."""
    stats = json.loads(front.ask_admin("/stats?format=json&filter=cluster.triton-grpc.membership_healthy"))
    return int(stats["stats"][0]["value"])


def request_for(model: str = tensors.ENSEMBLE, **texts: str) -> Any:
    """One battle as Triton's message."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, text in (TEXTS | texts).items():
        message.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        data = text.encode()
        message.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    return message


def status_of(front: Front, message: Any, *, method: str = "ModelInfer", **options: Any) -> str:
    """The name of gRPC's status that a request gets."""
    shown = options.pop("certificate", True)
    with front.channel(certificate=shown) as channel:
        try:
            getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)(message, timeout=30, **options)
        except grpc.RpcError as error:
            return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def test_scores_through_the_front_are_the_demos_and_both_servers_worked(
    front: Front, servers: list[TritonServer], tmp_path: Path
) -> None:
    client = front.score(BATTLES, tmp_path / "predictions.csv")
    said, _ = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert (tmp_path / "predictions.csv").read_bytes() == PREDICTIONS.read_bytes()
    for server in servers:
        with triton.InferenceServerClient(server.urls["grpc"]) as direct:
            (statistics,) = direct.get_inference_statistics(tensors.ENSEMBLE).model_stats
            assert statistics.inference_stats.success.count > 100


def test_a_certificate_or_a_token_is_needed_and_either_is_enough(front: Front) -> None:
    assert status_of(front, request_for()) == "OK"
    assert status_of(front, request_for(), certificate=False) == "UNAUTHENTICATED"
    for token, status in ((TOKEN, "OK"), ("another", "OK"), ("s3cre", "UNAUTHENTICATED"), ("", "UNAUTHENTICATED")):
        metadata = [("authorization", f"Bearer {token}")]
        assert status_of(front, request_for(), certificate=False, metadata=metadata) == status
    assert front.get("/v2") == 401
    assert front.get("/v2", Authorization=f"Bearer {TOKEN}") == 200


def test_the_client_scores_with_a_token_and_says_what_is_missing_without(front: Front, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    roots = front.secrets / "clients.crt"
    with Scorer(f"localhost:{front.port}", tls=Tls(roots, token=tmp_path / "token")) as scorer:
        assert scorer.score(TEXTS).winner
    with pytest.raises(ServerError, match="client certificate, or a token"):
        Scorer(f"localhost:{front.port}", tls=Tls(roots))


def test_the_front_lets_a_trace_context_through(front: Front, collector: Collector) -> None:
    traces = [os.urandom(16).hex() for _ in range(6)]  # a server sometimes loses its first (docs/known_issues.md)
    certificates = (front.secrets / name for name in ("clients.crt", "client.key", "client.crt"))
    with Scorer(f"localhost:{front.port}", tls=Tls(*certificates)) as scorer:
        for trace in traces:
            scorer.score(TEXTS, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    models = {"InferRequest", "preference_ensemble", "tokenize", "gemma", "llama", "combine"}
    eventually(lambda: any(set(collector.of(trace)) == models for trace in traces))


def test_the_log_has_a_line_for_each_request_that_failed_and_none_of_its_text(front: Front, tmp_path: Path) -> None:
    assert status_of(front, request_for(prompt="not to be logged")) == "OK"
    assert status_of(front, request_for(prompt="not to be logged"), certificate=False) == "UNAUTHENTICATED"
    assert status_of(front, request_for("absent", prompt="not to be logged")) == "NOT_FOUND"
    hostile = request_for(prompt="not to be logged")
    hostile.inputs[0].datatype = "INT64"
    assert status_of(front, hostile) == "INVALID_ARGUMENT"
    assert front.get("/absent") == 401

    def logged() -> list[dict[str, Any]]:
        lines = (tmp_path / "envoy.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    eventually(lambda: len(logged()) == 4)
    found = [(line["status"], line["grpc"]) for line in logged()]
    assert found == [(200, "Unauthenticated"), (200, "NotFound"), (200, "InvalidArgument"), (401, None)]
    assert "not to be logged" not in (tmp_path / "envoy.log").read_text()


def test_a_certificate_of_another_authority_is_no_certificate(front: Front, tmp_path: Path) -> None:
    shutil.copytree(front.secrets, tmp_path / "other")
    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "other" / "client.key"),
        *("-out", tmp_path / "other" / "client.crt", "-days", "1", "-subj", "/CN=client"),
    )
    other = Front(front.process, front.port, front.admin, tmp_path / "other")
    assert status_of(other, request_for()) == "UNAVAILABLE"


def test_health_is_open_to_all(front: Front) -> None:
    assert front.get("/v2/health/ready") == 200
    assert front.get("/v2/health/live") == 200
    assert status_of(front, service_pb2.ServerReadyRequest(), method="ServerReady", certificate=False) == "OK"


@pytest.mark.parametrize("model", ["gemma", "tokenize", "combine", "nothing", ""])
def test_members_are_not_there_for_clients(front: Front, model: str) -> None:
    assert status_of(front, request_for(model)) == "NOT_FOUND"
    asked = service_pb2.ModelMetadataRequest(name=model)
    assert status_of(front, asked, method="ModelMetadata") == "NOT_FOUND"
    assert front.get(f"/v2/models/{model or 'x'}", Authorization=f"Bearer {TOKEN}") == 404


def test_of_two_names_the_one_that_the_server_would_take_counts(front: Front) -> None:
    disguised = (
        request_for().SerializeToString() + service_pb2.ModelInferRequest(model_name="gemma").SerializeToString()
    )
    with front.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refusal:
            call(disguised, timeout=30)
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_metadata_and_configuration_of_the_ensembles_are_open_to_known_clients(front: Front) -> None:
    for method in ("ModelMetadata", "ModelConfig", "ModelReady"):
        asked = getattr(service_pb2, f"{method}Request")(name=tensors.ENSEMBLE_SYMMETRIC)
        assert status_of(front, asked, method=method) == "OK"
    assert status_of(front, service_pb2.ServerMetadataRequest(), method="ServerMetadata") == "OK"


@pytest.mark.parametrize(
    "method", ["RepositoryIndex", "RepositoryModelUnload", "SystemSharedMemoryRegister", "TraceSetting", "LogSettings"]
)
def test_other_methods_are_closed(front: Front, method: str) -> None:
    asked = getattr(service_pb2, f"{method}Request")()
    assert status_of(front, asked, method=method) == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    "path",
    ["/v2/repository/index", "/v2/models/stats", "/v2/logging", "/v2/models/preference_ensemble/../gemma", "/metrics"],
)
def test_other_paths_are_closed(front: Front, path: str) -> None:
    assert front.get(path, Authorization=f"Bearer {TOKEN}") == 404


def test_inference_by_http_is_closed(front: Front) -> None:
    path = f"/v2/models/{tensors.ENSEMBLE}/infer"
    assert front.get(path, "POST", b"{}", Authorization=f"Bearer {TOKEN}") == 404


def hostile() -> Iterator[tuple[str, Any]]:
    """Requests that end the bundled Triton, or are none."""
    message = request_for()
    message.parameters["timeout"].int64_param = 1
    yield "timeout", message
    for length in (9, 2**31, 2**32 - 1):
        message = request_for()
        message.raw_input_contents[0] = length.to_bytes(4, "little") + b"Why?"
        yield f"element of {length} bytes", message
    for shape in ([1, 2], [1, 2**62], [10**8, 1], [-1, 1], [2**32, 2**32], [0, 1]):
        message = request_for()
        message.inputs[0].shape[:] = shape
        yield f"shape {shape}", message
    message = request_for()
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"
    yield "shared memory of an input", message
    message = request_for()
    message.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    yield "parameters of an output", message
    message = request_for()
    message.inputs[0].contents.bytes_contents.append(b"Why?")
    yield "contents in both places", message
    message = request_for()
    del message.raw_input_contents[2]
    yield "an input without contents", message
    message = request_for()
    message.inputs[0].datatype = "INT64"
    yield "another datatype", message


@pytest.mark.parametrize(("kind", "message"), list(hostile()))
def test_what_a_server_may_not_see_is_refused(front: Front, kind: str, message: Any) -> None:
    assert status_of(front, message) == "INVALID_ARGUMENT"
    assert status_of(front, request_for()) == "OK"


def test_a_compressed_message_is_refused(front: Front) -> None:
    compressed = {"compression": grpc.Compression.Gzip}
    assert status_of(front, request_for(prompt="Why? " * 1000), **compressed) == "INVALID_ARGUMENT"


def test_bytes_that_are_no_message_are_refused(front: Front) -> None:
    with front.channel() as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"", b"\xff" * 40, b"\x0a\x7fshort", b"\x08\x01", os.urandom(200)):
            with pytest.raises(grpc.RpcError) as refusal:
                call(data, timeout=30)
            code = refusal.value.code()  # type: ignore[attr-defined]
            assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_what_is_too_large_is_refused_before_a_server_has_it(front: Front) -> None:
    assert status_of(front, request_for(prompt="Why? " * 900_000)) == "RESOURCE_EXHAUSTED"
    assert status_of(front, request_for(prompt="Why? " * 100_000)) != "RESOURCE_EXHAUSTED"


def test_what_is_too_fast_is_refused(start_front: Callable[..., Front]) -> None:
    slow = start_front(
        lambda text: text.replace("max_tokens: 2000, tokens_per_fill: 2000", "max_tokens: 3, tokens_per_fill: 3")
    )
    statuses = [status_of(slow, request_for()) for _ in range(20)]
    assert statuses[0] == "OK"
    assert set(statuses) == {"OK", "RESOURCE_EXHAUSTED"}


def test_renewed_certificates_are_used_without_a_restart(front: Front) -> None:
    def serial() -> str:
        found = json.loads(front.ask_admin("/certs"))["certificates"]
        return str(sorted(each["serial_number"] for entry in found for each in entry["cert_chain"]))

    before = serial()
    certificate(front.secrets, "server")
    eventually(lambda: serial() != before)
    assert status_of(front, request_for()) == "OK"


def test_a_front_whose_key_is_missing_is_not_ready_as_kubernetes_asks(start_front: Callable[..., Front]) -> None:
    broken = start_front(lambda text: text.replace("server.key", "missing.key"))
    probe = front_of_kubernetes()["readinessProbe"]["httpGet"]
    assert (probe["port"], probe["scheme"]) == ("grpc", "HTTPS")
    with pytest.raises(OSError, match=r"EOF|reset|closed"):
        broken.get(probe["path"])
    assert start_front().get(probe["path"]) == 200


def scores_of(path: Path) -> list[list[str]]:
    """Every row without its id."""
    with path.open(newline="") as file:
        return [row[1:] for row in csv.reader(file)][1:]


@pytest.fixture
def replace(
    front: Front, servers: list[TritonServer], start_server: Callable[..., TritonServer]
) -> Callable[..., None]:
    """Ends both servers, one after the other while they answer, and puts new ones in their places."""

    def both(by: signal.Signals, repository: Path | None = None) -> None:
        for index, old in enumerate(servers):
            before = answered(old)
            eventually(lambda old=old, before=before: answered(old) > before + 20, 180.0)
            os.kill(old.pid, by)
            eventually(lambda: ready_servers(front) == 1, 60.0)
            old.stop(10.0)
            servers[index] = start_server(like=old, repository=repository)
            eventually(lambda: ready_servers(front) == 2, 60.0)

    return both


def answered(server: TritonServer) -> int:
    """How many battles a server has answered."""
    with triton.InferenceServerClient(server.urls["grpc"]) as direct:
        (statistics,) = direct.get_inference_statistics(tensors.ENSEMBLE).model_stats
        return int(statistics.inference_stats.success.count)


@contextmanager
def repeatedly(work: Callable[[int], None]) -> Iterator[None]:
    """Does the numbered pieces of `work` one after the other until the block ends; raises what one of them raised."""
    ends = threading.Event()

    def run() -> None:
        for number in itertools.count():
            work(number)
            if ends.is_set():
                return

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(run)
        try:
            yield
        finally:
            ends.set()
            working.result()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_no_row_fails_when_servers_are_replaced_one_after_the_other(
    front: Front, replace: Callable[..., None], tmp_path: Path, by: signal.Signals
) -> None:
    battles = repeated_battles(tmp_path / "many.csv", 4)

    def score(number: int) -> None:
        client = front.score(battles, tmp_path / f"{number}.csv")
        said, _ = client.communicate(timeout=300)
        assert client.returncode == 0, said
        assert "0 failed" in said
        assert scores_of(tmp_path / f"{number}.csv") == scores_of(PREDICTIONS) * 4

    with repeatedly(score):
        replace(by)


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Runs `preference-export` on a copy of the demo, whose weights may be changed first; the repository."""
    shutil.copytree(demo_repository().parent, tmp_path / "build/demo", copy_function=os.link)
    configuration = tmp_path / "demo.toml"
    configuration.write_text((ROOT / "configs/demo.toml").read_text())

    def export(command: str, weights: str = "") -> Path:
        if weights:
            text, changed = re.subn(r"^weights = .*$", f"weights = {weights}", configuration.read_text(), flags=re.M)
            assert changed == 1
            configuration.write_text(text)
        line = [str(Path(sys.executable).with_name("preference-export")), command, str(configuration)]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return tmp_path / "build/demo/repository"

    return export


def test_a_new_version_is_rolled_out_and_back_while_battles_are_scored(
    front: Front, replace: Callable[..., None], exported: Callable[..., Path], tmp_path: Path
) -> None:
    versions: list[str] = []
    certificates = [front.secrets / name for name in ("clients.crt", "client.key", "client.crt")]
    with Scorer(f"localhost:{front.port}", tls=Tls(*certificates)) as scorer:

        def score(number: int) -> None:
            versions.append(scorer.score(TEXTS).version)

        old = scorer.score(TEXTS)
        with repeatedly(score):
            replace(signal.SIGTERM, exported("repository", "{ gemma = 0.9, llama = 0.1 }"))
            new = scorer.score(TEXTS)
            replace(signal.SIGTERM, exported("rollback"))
            back = scorer.score(TEXTS)
    assert {old.version, new.version} == set(versions)
    assert list(back.probabilities) == list(old.probabilities) != list(new.probabilities)


def test_a_drained_front_answers_what_it_has_accepted_and_takes_nothing_new(front: Front) -> None:
    with front.channel() as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request_for(), timeout=60) for _ in range(40)]
        time.sleep(0.1)
        drain = front_of_kubernetes()["lifecycle"]["preStop"]["exec"]["command"]
        script = drain[-1].replace("/9901", f"/{front.admin}").replace("sleep 30", "true")
        done = subprocess.run([*drain[:-1], script], capture_output=True, text=True, timeout=30, check=False)
        assert "200 OK" in done.stdout, done
        assert all(call.result().model_name == tensors.ENSEMBLE for call in calls)
    eventually(lambda: _is_closed(front.port))


def front_of_kubernetes() -> dict[str, Any]:
    """Envoy's container in the manifests."""
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/base/front.yaml").read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return dict(container)


def _is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
