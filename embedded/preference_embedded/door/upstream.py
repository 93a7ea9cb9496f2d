"""The connection to the tritonserver behind the door: battles that are never cancelled, and probes of whether it works.

A server that is alive may have stopped answering; only a battle answered by the whole ensemble shows that it has not.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from preference_core import tensors
from preference_core.errors import ServerError
from preference_embedded.door.contract import Ensemble

SERVICE = "/inference.GRPCInferenceService/"
#: gRPC's largest: what may come in was checked, and answers are small.
UNLIMITED = 2**31 - 1
OPTIONS = (
    ("grpc.max_send_message_length", UNLIMITED),
    ("grpc.max_receive_message_length", UNLIMITED),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
DESCRIBE_TIMEOUT_S = 10.0
#: Between probes of an idle ensemble; longer where a probe takes long: they may cost 5 % of the engines.
PROBE_INTERVAL_S = 2.0
PROBE_COST = 20.0
#: A server may be silent this long, or for so many full batches of the longest battles, if that is longer: the machine
#: may have more to do than when they were measured.
MIN_SILENCE_S, SILENT_BATCHES = 5.0, 4
#: A single request may be unanswered this many times longer, and until this many requests that came after it were
#: answered: before that it may wait behind others.
LOST_FACTOR, LOST_ANSWERS = 10.0, 10
#: Answers of a server that works.
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)
PROBE_ID = "probe"


@dataclass(frozen=True)
class ProbeSize:
    """What the longest battle takes: words that fill every member's `max_tokens`, and how many may be one batch."""

    words: int
    batch: int


@dataclass(frozen=True)
class Waiting:
    """A request without an answer: when it was sent, and the count of answers once all before it have theirs."""

    ensemble: str
    since: float
    due: int


@dataclass
class Pulse:
    """When the server last answered, and what it has yet to answer.

    Ensembles share engines: a battle of one waits behind those of the others, so an answer of any shows that all go on.
    """

    silence_s: float = MIN_SILENCE_S
    answered: float = field(default_factory=time.monotonic)
    answers: int = 0
    waiting: dict[int, Waiting] = field(default_factory=dict)

    def sent(self, serial: int, ensemble: str) -> None:
        """A request was sent."""
        self.waiting[serial] = Waiting(ensemble, time.monotonic(), self.answers + len(self.waiting))

    def has_answered(self) -> None:
        """An answer came."""
        self.answered = time.monotonic()
        self.answers += 1

    def stalled(self, now: float) -> str | None:
        """Why the server counts as dead; None while it does not."""
        if not self.waiting:
            return None
        oldest = min(self.waiting.values(), key=lambda request: request.since)
        silence, age = now - max(self.answered, oldest.since), now - oldest.since
        if silence > self.silence_s:
            return f"`{oldest.ensemble}` has answered nothing for {silence:.1f} s"
        if age > LOST_FACTOR * self.silence_s and self.answers > oldest.due + LOST_ANSWERS:
            return f"`{oldest.ensemble}` has left a request unanswered for {age:.1f} s"
        return None


class Upstream:
    """One run of the server. Everything here belongs to one event loop."""

    def __init__(self, url: str, ensembles: Sequence[str], size: ProbeSize) -> None:
        self.ensembles: Mapping[str, Ensemble] = {}
        self._names = ensembles
        self._size = size
        self._channel = grpc.aio.insecure_channel(url, options=OPTIONS)
        self._infer = self._channel.unary_unary(SERVICE + "ModelInfer")
        self._pulse = Pulse()
        self._answered = dict.fromkeys(ensembles, time.monotonic())
        self._intervals_s = dict.fromkeys(ensembles, PROBE_INTERVAL_S)
        self._failures: dict[str, str] = {}
        self._serial = 0
        self._prober: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Learns what the ensembles are and has each of them answer a short battle and the longest.

        Raises `ArtefactError` for an ensemble that is not this project's, `ServerError` for one that does not answer.
        """
        self.ensembles = {name: await self._describe(name) for name in self._names}
        for name in self._names:
            await self._first_probe(name, 1)  # The first battle of all warms the engines up.
            short, long = [await self._first_probe(name, words) for words in (1, self._size.words)]
            self._intervals_s[name] = max(PROBE_INTERVAL_S, PROBE_COST * short)
            self._pulse.silence_s = max(self._pulse.silence_s, SILENT_BATCHES * self._size.batch * long)
        self._prober = asyncio.create_task(self._keep_probing())

    async def close(self) -> None:
        """Ends the connection; only for a server that has nothing under way, or that is dead."""
        if self._prober is not None:
            self._prober.cancel()
        await self._channel.close()

    async def infer(self, ensemble: str, request: bytes) -> bytes:
        """Sends a request that was checked; the answer as it came. Never cancel it: that kills the server."""
        self._serial += 1
        serial = self._serial
        self._pulse.sent(serial, ensemble)
        try:
            answer: bytes = await self._infer(request)
            self._has_answered(ensemble)
            return answer
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSALS:
                self._has_answered(ensemble)
            raise
        finally:
            self._pulse.waiting.pop(serial, None)

    def _has_answered(self, ensemble: str) -> None:
        self._pulse.has_answered()
        self._answered[ensemble] = self._pulse.answered

    async def call(self, method: str, request: Any, answer: type[Any]) -> Any:
        """Any other method of the service."""
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=DESCRIBE_TIMEOUT_S)

    def broken(self) -> str | None:
        """Why the server must be restarted: an ensemble that fails or no longer answers. None while all is well."""
        for name, failure in self._failures.items():
            return f"`{name}` {failure}"
        return self._pulse.stalled(time.monotonic())

    async def _describe(self, name: str) -> Ensemble:
        try:
            answer = await self.call(
                "ModelConfig", service_pb2.ModelConfigRequest(name=name), service_pb2.ModelConfigResponse
            )
            metadata = await self.call(
                "ModelMetadata", service_pb2.ModelMetadataRequest(name=name), service_pb2.ModelMetadataResponse
            )
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"The server does not describe `{name}`: {error.details()}") from error
        parameters = {key: value.string_value for key, value in answer.config.parameters.items()}
        labels, members = tensors.labels_and_members(f"The ensemble `{name}`", parameters)
        versions = frozenset(metadata.versions)
        return Ensemble(name, versions, len(members), len(labels))

    async def _first_probe(self, name: str, words: int) -> float:
        began = time.monotonic()
        try:
            await self.infer(name, probe(name, words))
            return time.monotonic() - began
        except grpc.aio.AioRpcError as error:
            raise ServerError(f"`{name}` fails at a first battle: {error.details()}") from error

    async def _keep_probing(self) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        while True:
            for name in self._names:
                idle = time.monotonic() - self._answered[name] > self._intervals_s[name]
                if idle and (name not in tasks or tasks[name].done()):
                    tasks[name] = asyncio.create_task(self._probe(name))
            await asyncio.sleep(PROBE_INTERVAL_S / 4)

    async def _probe(self, name: str) -> None:
        try:
            await self.infer(name, probe(name, 1))
            self._failures.pop(name, None)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                self._failures[name] = f"fails at a battle: {error.details()}"


def probe(ensemble: str, words: int) -> bytes:
    """A battle with this many words in each field."""
    request = service_pb2.ModelInferRequest(model_name=ensemble, id=PROBE_ID)
    for tensor, word in zip(tensors.BATTLE_INPUTS, (b"why ", b"yes ", b"no "), strict=True):
        text = word * words
        request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, 1])
        request.raw_input_contents.append(tensors.bytes_contents([text]))
    request.outputs.add(name="probabilities")
    data: bytes = request.SerializeToString()
    return data
