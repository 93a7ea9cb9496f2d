"""The front door without a server behind it: how many it lets in, and whom."""

import asyncio
import http.client
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from preference_core.errors import UserError
from preference_embedded import ports
from preference_embedded.door.admission import DEEPEST_CUT, FIRST_LIMIT, Admission
from preference_embedded.door.contract import Ensemble, Limits
from preference_embedded.door.desk import Desk, UpstreamError
from preference_embedded.door.front import Door, DoorOptions
from preference_embedded.door.tls import ServerTls
from preference_embedded.door.upstream import ProbeSize, Upstream

GOAL_S = 2.0
MINIMUM = 16


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock: Clock) -> Admission:
    return Admission(GOAL_S, MINIMUM, clock)


def rounds(admission: Admission, clock: Clock, latency_s: float, count: int) -> None:
    """`count` times `latency_s` in which battles wait outside all the time: whoever leaves makes room for the next."""
    while admission.enter():
        pass
    for _ in range(count):
        clock.now += latency_s
        for _ in range(admission.under_way):
            admission.leave(latency_s)
            while admission.enter():
                pass


def test_what_is_over_the_limit_is_refused_until_one_has_left(admission: Admission) -> None:
    assert [admission.enter() for _ in range(FIRST_LIMIT + 1)] == [True] * FIRST_LIMIT + [False]
    admission.leave(GOAL_S)
    assert admission.enter()
    assert (admission.accepted, admission.refused) == (FIRST_LIMIT + 1, 1)


def test_the_limit_grows_while_answers_are_quick_and_it_holds_battles_back(admission: Admission, clock: Clock) -> None:
    rounds(admission, clock, GOAL_S / 10, 5)
    assert admission.limit > 4 * FIRST_LIMIT


def test_the_limit_stays_where_it_holds_nothing_back(admission: Admission) -> None:
    for _ in range(1000):
        assert admission.enter()
        admission.leave(GOAL_S / 10)
    assert admission.limit == FIRST_LIMIT


def test_late_answers_shrink_the_limit_once_per_latency_and_never_below_the_minimum(
    admission: Admission, clock: Clock
) -> None:
    rounds(admission, clock, GOAL_S / 10, 5)
    grown = admission.limit
    rounds(admission, clock, 10 * GOAL_S, 1)
    assert admission.limit == pytest.approx(grown * DEEPEST_CUT, abs=1)
    rounds(admission, clock, 10 * GOAL_S, 20)
    assert admission.limit == MINIMUM


class _Dying:
    """A server of which the process of a model has died."""

    def __init__(self) -> None:
        self.ensembles = {"e": Ensemble("e", frozenset("1"), 1, 2)}

    async def infer(self, ensemble: str, request: bytes) -> bytes:
        nothing = grpc.aio.Metadata()
        details = "in ensemble 'e', Stub process 'llama_0_0' is not healthy."
        raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, details)


def test_a_battle_whose_models_process_has_died_may_be_sent_again() -> None:
    request = service_pb2.ModelInferRequest(model_name="e")
    for name in ("prompt", "response_a", "response_b"):
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(bytes(4))
    desk = Desk(Limits(2**20, 10), Admission(GOAL_S, MINIMUM))
    desk.upstream, desk.closed = cast(Upstream, _Dying()), None
    with pytest.raises(UpstreamError, match="not healthy") as caught:
        asyncio.run(desk.infer(request))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and `server` and `client` `.pem` and `.key`."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")
    new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    _openssl(folder, *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name in ("server", "client"):
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost"]
        _openssl(folder, *new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=localhost")
    return folder


@pytest.fixture
def mutual(certificates: Path) -> Iterator[dict[str, int]]:
    """Ports of a door that lets in only clients with a certificate."""
    tls = ServerTls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    door = Door(DoorOptions(Limits(2**20, 10), ProbeSize(64, 16), GOAL_S, MINIMUM, tls))
    listening = ports.resolve("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
    door.start("127.0.0.1", listening)
    try:
        yield listening
    finally:
        door.stop()


def health(port: int, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_clients_with_a_certificate_are_let_in(mutual: dict[str, int], certificates: Path) -> None:
    known = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    known.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    assert health(mutual["http"], known) == 200
    with pytest.raises((ssl.SSLError, OSError)):
        health(mutual["http"], ssl.create_default_context(cafile=str(certificates / "ca.pem")))

    authority, key, certificate = ((certificates / n).read_bytes() for n in ("ca.pem", "client.key", "client.pem"))
    target, live = f"localhost:{mutual['grpc']}", service_pb2.ServerLiveRequest()
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(authority, key, certificate)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(live, timeout=10).live
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(service_pb2.ModelInferRequest(model_name="preference_ensemble"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the server is starting" in caught.value.details()
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(authority)) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive(live, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_files_that_do_not_belong_together_are_an_error_before_anything_listens(certificates: Path) -> None:
    with pytest.raises(UserError, match=r"client\.key"):
        ServerTls(certificates / "server.pem", certificates / "client.key").context()
