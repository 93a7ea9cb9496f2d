"""Speaks to one ensemble on one Triton server: the only module that knows gRPC and tritonclient.

Battles go in, answers or errors of the project's tree come out. It sends each request once; who calls it decides about
retries, order and how many requests are under way.
"""

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from preference_client.codec import Answer, Ensemble, answer_of, bytes_tensor, weights_tensor
from preference_client.retries import Patience, retry_delay_s
from preference_core import tensors
from preference_core.battles.battle import Battle
from preference_core.errors import (
    ArtefactError,
    DeadlineError,
    PassingError,
    PreferenceError,
    RefusedError,
    ScoringError,
    ServerError,
    UnavailableError,
    UserError,
)

#: The largest message that gRPC can describe; a battle may be long.
MAX_MESSAGE_BYTES = 2**31 - 1

#: Seconds until a server that accepts connections must have described the ensemble.
DESCRIBE_TIMEOUT_S = 10.0

#: Where gRPC looks for an HTTP proxy.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A restarted server is found again within seconds; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

_ERRORS: Mapping[grpc.StatusCode, type[PreferenceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # What a server answers to calls under way when it shuts down.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    # What a connection that breaks, or a server that has no room just now, may answer. It may also be the row's fault.
    grpc.StatusCode.RESOURCE_EXHAUSTED: PassingError,
    grpc.StatusCode.UNKNOWN: PassingError,
    grpc.StatusCode.ABORTED: PassingError,
    # The server, or this client's access to it, is not what it should be: no other request would fare better.
    grpc.StatusCode.NOT_FOUND: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: ServerError,
}

#: What a server that is starting or stopping, and a broken connection, say under codes that mean something else.
_AWAY = {
    grpc.StatusCode.NOT_FOUND: ("has no available versions",),
    # The process of a model has died: what supervises the server restarts it, or somebody does.
    grpc.StatusCode.INTERNAL: ("RST_STREAM", "Stub process"),
}

#: What a failed connection says, and what to do about it.
_HINTS = (
    (
        "Failed parsing HTTP/2",
        "What listens there does not speak gRPC, or expects TLS (`--tls`): the port is usually 8001.",
    ),
    ("errors resolving", "Is the name of the host right?"),
    ("andshake failed", "Does the server speak TLS, and with a certificate of `--root-certificates`?"),
    ("DEADLINE_EXCEEDED", "What listens there says nothing: is it the gRPC port, usually 8001, and without TLS?"),
    ("UNIMPLEMENTED", "What listens there is not Triton, or is a proxy: is it the right server?"),
)


@dataclass(frozen=True)
class Tls:
    """TLS to the server; with `private_key` and `certificate_chain` (both PEM files) mutual TLS.

    Without `root_certificates` (a PEM file) the machine's own are trusted.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise UserError("Mutual TLS needs both a private key and a certificate chain")


@dataclass(frozen=True, slots=True)
class Request:
    """One battle as a message and its size in bytes, ready to be sent any number of times."""

    message: Any
    bytes: int


class Call:
    """One request under way, or about to be."""

    __slots__ = ("_ensemble", "_error", "_future", "_given_up")

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._future: Any = None
        self._error: PreferenceError | None = None
        self._given_up = False

    def cancel(self) -> None:
        """Gives the request up; the server is told. Nothing happens to a call that has ended."""
        self._given_up = True
        if self._future is not None:
            self._future.cancel()

    def answer(self) -> Answer:
        """The answer of a call that has ended. Raises an error of the project's tree if it failed."""
        if self._error is not None:
            raise self._error
        try:
            response = self._future.result()
        except grpc.RpcError as error:
            raise _error_of(error) from error
        except grpc.FutureCancelledError as error:
            raise UnavailableError("The request was cancelled") from error
        names = (output.name for output in response.outputs)
        found = dict(zip(names, response.raw_output_contents, strict=False))
        return answer_of(found, self._ensemble, response.model_version)

    def _start(self, future: Any, done: Callable[[], None]) -> None:
        self._future = future
        if self._given_up:
            future.cancel()
        future.add_done_callback(lambda _: done())

    def _fail(self, error: PreferenceError, done: Callable[[], None]) -> None:
        self._error = error
        done()


class Transport:
    """A connection to one ensemble. Every method may be called from any thread.

    A thread of its own starts every call: an exception that a signal raises inside gRPC, as Ctrl-C does in the main
    thread, leaves a channel that never closes.
    """

    def __init__(
        self,
        url: str,
        model: str,
        tls: Tls | None = None,
        weights: Mapping[str, float] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Connects to `url` (`host:port`) and asks for the ensemble's labels and members.

        Raises `ServerError` at once if nothing answers there; a server that is starting is waited for. `weights` go
        with every request.
        """
        port = url.rpartition(":")[2]
        if "://" in url or not (url.startswith("unix:") or (":" in url and port.isdigit() and int(port) < 2**16)):
            raise UserError(
                f"The server's address is `{url}`, expected host:port", hint="The gRPC port is usually 8001."
            )
        self.url = url
        self._channel = _channel(url, tls)
        try:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self.ensemble = _describe(stub, url, model, patience or Patience())
            self._weights = weights_tensor(weights, self.ensemble.members)
        except BaseException:
            self._channel.close()
            raise
        self._templates: dict[int, Any] = {}
        self._closed = False
        self._outbox: SimpleQueue[tuple[Call, Request, float, Callable[[], None]] | None] = SimpleQueue()
        self._sender = Thread(target=self._send_all, args=(stub.ModelInfer,), name="preference-sender", daemon=True)
        self._sender.start()

    def request(self, battle: Battle, request_id: str) -> Request:
        """A request for one battle. `request_id` appears in the server's logs and traces."""
        message = service_pb2.ModelInferRequest()
        message.CopyFrom(self._template(len(battle.prompt)))
        message.id = request_id
        contents = [bytes_tensor(getattr(battle, field), field) for field in tensors.FIELDS]
        if self._weights is not None:
            contents.append(self._weights)
        message.raw_input_contents.extend(contents)
        return Request(message, message.ByteSize())

    def send(self, request: Request, timeout_s: float, done: Callable[[], None]) -> Call:
        """Sends a request and returns at once; `done` is called, in another thread, when the call has ended.

        Raises `ServerError` if this connection is closed.
        """
        call = Call(self.ensemble)
        self._outbox.put((call, request, timeout_s, done))
        if self._closed:
            raise _closed()
        return call

    def close(self) -> None:
        """Ends the connection and cancels every call under way."""
        self._closed = True
        self._outbox.put(None)
        self._sender.join()

    def _send_all(self, infer: Any) -> None:
        while (item := self._outbox.get()) is not None:
            call, request, timeout_s, done = item
            if self._closed:
                call._fail(_closed(), done)
                continue
            try:
                future = infer.future(request.message, timeout=timeout_s)
            except grpc.RpcError as error:
                call._fail(_error_of(error), done)
            else:
                call._start(future, done)
        self._channel.close()

    def _template(self, turns: int) -> Any:
        """The part of a request that all battles with this number of turns share."""
        if turns not in self._templates:
            message = service_pb2.ModelInferRequest(model_name=self.ensemble.model)
            for tensor in tensors.BATTLE_INPUTS:
                message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, turns])
            if self._weights is not None:
                tensor = tensors.weights(len(self.ensemble.members))
                message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, *tensor.dims])
            self._templates[turns] = message
        return self._templates[turns]


def _channel(url: str, tls: Tls | None) -> Any:
    # gRPC sends even the loopback through the proxy of the environment.
    options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)) if _is_loopback(url) else _CHANNEL_OPTIONS
    if tls is None:
        return grpc.insecure_channel(url, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_bytes_of(tls.root_certificates),
        private_key=_bytes_of(tls.private_key),
        certificate_chain=_bytes_of(tls.certificate_chain),
    )
    return grpc.secure_channel(url, credentials, options=options)


def _is_proxied(url: str) -> bool:
    return not _is_loopback(url) and any(name in os.environ for name in PROXY_VARIABLES)


def _is_loopback(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _bytes_of(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}") from error


def _describe(stub: Any, url: str, model: str, patience: Patience) -> Ensemble:
    wanted = service_pb2.ModelConfigRequest(name=model)
    config = _asked(lambda: stub.ModelConfig(wanted, timeout=DESCRIBE_TIMEOUT_S), url, model, patience)
    parameters = {key: value.string_value for key, value in config.config.parameters.items()}
    for key in (tensors.LABELS_PARAMETER, tensors.MEMBERS_PARAMETER):
        if not parameters.get(key):
            raise ArtefactError(
                f"The model `{model}` on {url} has no parameter `{key}`: its repository was not made by this project",
                hint="Make one with `make export`, and serve that.",
            )
    about = service_pb2.ModelMetadataRequest(name=model)
    metadata = _asked(lambda: stub.ModelMetadata(about, timeout=DESCRIBE_TIMEOUT_S), url, model, patience)
    labels, members = (
        tuple(parameters[key].split(",")) for key in (tensors.LABELS_PARAMETER, tensors.MEMBERS_PARAMETER)
    )
    version = max(metadata.versions, key=int, default="")
    return Ensemble(model, labels, members, version, parameters.get(tensors.CONTENT_PARAMETER, ""))


def _asked(call: Callable[[], Any], url: str, model: str, patience: Patience) -> Any:
    """What the server says about itself. One that says that it is not ready is asked again."""
    deadline_s = time.monotonic() + patience.deadline_s
    for failures in itertools.count(1):
        try:
            return call()
        except grpc.RpcError as error:
            delay_s = retry_delay_s(failures)
            if not _is_starting(error) or time.monotonic() + delay_s > deadline_s:
                raise _no_ensemble(error, url, model) from error
            time.sleep(delay_s)
    raise AssertionError("endless")


def _is_starting(error: Any) -> bool:
    unreached = "failed to connect" in error.details() or "errors resolving" in error.details()
    return not unreached and isinstance(_error_of(error), UnavailableError)


def _no_ensemble(error: Any, url: str, model: str) -> PreferenceError:
    details = f"{error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return ServerError(f"The server on {url} has no model `{model}` ({details})", hint="Is it the right server?")
    proxied = " A proxy stands between: `no_proxy` names servers that need none." if _is_proxied(url) else ""
    hints = (hint for text, hint in _HINTS if text in details)
    hint = next(hints, "Start the server with `make serve`, or say where it is with `--url`.")
    return UnavailableError(f"No ensemble `{model}` can be reached on {url} ({details})", hint=f"{hint}{proxied}")


def _error_of(error: Any) -> PreferenceError:
    details = error.details() or ""
    away = any(text in details for text in _AWAY.get(error.code(), ()))
    kind = UnavailableError if away else _ERRORS.get(error.code(), ScoringError)
    return kind(f"{error.code().name}: {details}")


def _closed() -> ServerError:
    return ServerError("The scorer is closed")
