"""A channel to one address and the ensemble that answers there: the only module that knows gRPC and tritonclient.

What goes wrong comes out as errors of the project's tree. It never retries.
"""

import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from preference_client.codec import Answer, Ensemble, answer_of
from preference_client.retries import retry_delay_s
from preference_core import tensors
from preference_core.addresses import is_loopback
from preference_core.ensemble.combination import NOT_FINITE
from preference_core.errors import (
    DeadlineError,
    NonFiniteLogitsError,
    PassingError,
    PreferenceError,
    RefusedError,
    ScoringError,
    ServerError,
    UnavailableError,
    UserError,
)
from preference_core.triton.answers import DEAD_PROCESS, INTERNAL_ERROR, OVERLOADED

#: The largest message that gRPC can describe; a battle may be long.
MAX_MESSAGE_BYTES = 2**31 - 1

#: Seconds until a server that accepts connections must have described the ensemble.
DESCRIBE_TIMEOUT_S = 10.0

#: While an answer is awaited: how often a silent peer is asked for a sign of life, and how long it may take.
KEEPALIVE_MS = 5_000
PING_TIMEOUT_MS = 5_000

#: Where gRPC looks for an HTTP proxy.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")

_ERRORS: Mapping[grpc.StatusCode, type[PreferenceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    # What a server answers to calls under way when it shuts down.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    # The server, or this client's access to it, is not what it should be: no other request would fare better.
    grpc.StatusCode.NOT_FOUND: ServerError,
    grpc.StatusCode.UNIMPLEMENTED: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: ServerError,
}

#: What a server that is starting or stopping, and a broken connection, say under codes that mean something else.
_AWAY = {
    grpc.StatusCode.NOT_FOUND: ("has no available versions",),
    grpc.StatusCode.UNKNOWN: ("Stream removed",),
    # The process of a model has died: what supervises the server restarts it, or somebody does.
    grpc.StatusCode.INTERNAL: ("RST_STREAM", DEAD_PROCESS),
}

#: What this project's own models say when the same battle would always fail there.
_PERMANENT = {NOT_FINITE: NonFiniteLogitsError, INTERNAL_ERROR: ScoringError}

#: What a server says that works, and has too much to do: the door, and Triton's queues.
_BUSY = (OVERLOADED, "Exceeds maximum queue size", "Request timeout expired")

_UNREACHED = ("failed to connect", "backends failing", "errors resolving")

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

    Without `root_certificates` (a PEM file) the machine's own are trusted. What `token` (a file) holds is sent with
    every request, as `authorization: Bearer ...`.
    """

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None
    token: Path | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise UserError("Mutual TLS needs both a private key and a certificate chain")


@dataclass(frozen=True, slots=True)
class Request:
    """One battle as a message, its size in bytes, and the trace that it belongs to; it may be sent many times."""

    message: Any
    bytes: int
    traceparent: str | None = None


class Connection:
    """A new channel to `url`, and the `ensemble` that was there when it was made."""

    def __init__(self, url: str, model: str, tls: Tls | None, patience_s: float = 0.0) -> None:
        """Asks what `model` is. Raises `ServerError` if nothing answers; one that starts is asked for `patience_s`."""
        self.url = url
        self._channel = _channel(url, tls)
        try:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
            self.ensemble = _describe(stub, url, model, time.monotonic() + patience_s)
            self._infer = stub.ModelInfer
        except BaseException:
            self._channel.close()
            raise

    def infer(self, request: Request, timeout_s: float) -> Any:
        """Sends a request; a future. Raises an error of the project's tree if there is no way to send it."""
        try:
            metadata = (("traceparent", request.traceparent),) if request.traceparent else None
            return self._infer.future(request.message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _error_of(error, self.url) from error

    def answer(self, future: Any) -> Answer:
        """The answer in a future that has ended. Raises an error of the project's tree if it failed.

        An answer of another version than was described here may have other labels: it counts as none.
        """
        try:
            response = future.result()
        except grpc.RpcError as error:
            raise _error_of(error, self.url) from error
        except grpc.FutureCancelledError as error:
            raise UnavailableError("The request was cancelled") from error
        if response.model_version != self.ensemble.version:
            raise UnavailableError(
                f"{self.url} answered with version {response.model_version} of `{self.ensemble.model}`, "
                f"{self.ensemble.version} was there before"
            )
        names = (output.name for output in response.outputs)
        return answer_of(dict(zip(names, response.raw_output_contents, strict=False)), self.ensemble)

    def is_lost(self, future: Any, answered_since: bool) -> bool:
        """Whether how a future has ended says that a new connection is due.

        `answered_since` tells whether the server has answered others in the meantime: a deadline is its fault or not.
        """
        if future.cancelled():
            return False
        error = future.exception()
        if error is None:
            return bool(future.result().model_version != self.ensemble.version)
        kind = type(_error_of(error, self.url))
        if kind is DeadlineError:
            return not answered_since
        return kind is UnavailableError and not any(text in (error.details() or "") for text in _BUSY)

    def is_answered(self, future: Any) -> bool:
        """Whether a future has ended with an answer."""
        return not future.cancelled() and future.exception() is None

    def close(self) -> None:
        """Closes the channel and cancels what is under way there."""
        self._channel.close()


def infer_message(model: str, shapes: Mapping[tensors.Tensor, Sequence[int]]) -> Any:
    """A request for `model` without id and contents; `shapes` leave out the batch of one."""
    message = service_pb2.ModelInferRequest(model_name=model)
    for tensor, shape in shapes.items():
        message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, *shape])
    return message


def check_url(url: str) -> None:
    """Raises `UserError` unless `url` is `host:port` or `unix:PATH`."""
    port = url.rpartition(":")[2]
    if "://" in url or not (url.startswith("unix:") or (":" in url and port.isdigit() and int(port) < 2**16)):
        raise UserError(f"The server's address is `{url}`, expected host:port", hint="The gRPC port is usually 8001.")


def check_traceparent(traceparent: str | None) -> None:
    """Raises `UserError` unless this is a trace context of W3C's version 00, or none."""
    if traceparent and not re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", traceparent):
        raise UserError(
            f"The trace context is `{traceparent}`, expected 00-TRACE-PARENT-FLAGS: 32, 16 and 2 hexadecimal digits",
            hint="It comes from `--traceparent`, or from the variable TRACEPARENT.",
        )


def _channel(url: str, tls: Tls | None) -> Any:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A restarted server is found again within seconds; gRPC's own back-off grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        # A new channel is a new connection, not one that another channel already has.
        ("grpc.use_local_subchannel_pool", 1),
        # All the addresses of a name, in turn.
        ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    ]
    if _is_local(url):  # gRPC sends even the loopback through the proxy of the environment.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return grpc.insecure_channel(url, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_bytes_of(tls.root_certificates),
        private_key=_bytes_of(tls.private_key),
        certificate_chain=_bytes_of(tls.certificate_chain),
    )
    if token := _bytes_of(tls.token):
        bearer = grpc.access_token_call_credentials(token.decode().strip())
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    return grpc.secure_channel(url, credentials, options=options)


def _is_proxied(url: str) -> bool:
    return not _is_local(url) and any(name in os.environ for name in PROXY_VARIABLES)


def _is_local(url: str) -> bool:
    return is_loopback(url.rpartition(":")[0].strip("[]"))


def _bytes_of(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}") from error


def _describe(stub: Any, url: str, model: str, deadline_s: float) -> Ensemble:
    config = _asked(stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), url, deadline_s)
    parameters = {key: value.string_value for key, value in config.config.parameters.items()}
    labels, members = tensors.labels_and_members(f"The model `{model}` on {url}", parameters)
    metadata = _asked(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=model), url, deadline_s)
    return Ensemble(
        model,
        labels,
        members,
        max(metadata.versions, key=int, default=""),
        parameters.get(tensors.CONTENT_PARAMETER, ""),
        parameters.get(tensors.NAME_PARAMETER, ""),
    )


def _asked(method: Any, request: Any, url: str, deadline_s: float) -> Any:
    """What the server says about itself. One that says that it is not ready is asked again."""
    for failures in itertools.count(1):
        try:
            return method(request, timeout=DESCRIBE_TIMEOUT_S)
        except grpc.RpcError as error:
            delay_s = retry_delay_s(failures)
            if not _is_starting(error) or time.monotonic() + delay_s > deadline_s:
                raise _no_ensemble(error, url, request.name) from error
            time.sleep(delay_s)
    raise AssertionError("endless")


def _is_starting(error: Any) -> bool:
    unreached = any(text in error.details() for text in _UNREACHED)
    return not unreached and isinstance(_error_of(error), UnavailableError)


def _no_ensemble(error: Any, url: str, model: str) -> PreferenceError:
    details = f"{error.code().name}: {error.details()}"
    if error.code() is grpc.StatusCode.NOT_FOUND and not _is_starting(error):
        return ServerError(f"The server on {url} has no model `{model}` ({details})", hint="Is it the right server?")
    proxied = " A proxy stands between: `no_proxy` names servers that need none." if _is_proxied(url) else ""
    hints = (hint for text, hint in _HINTS if text in details)
    hint = next(hints, "Start the server with `make serve`, or say where it is with `--url`.")
    return UnavailableError(f"No ensemble `{model}` can be reached on {url} ({details})", hint=f"{hint}{proxied}")


def _error_of(error: Any, url: str = "") -> PreferenceError:
    """The error of the project's tree; what is not known to be permanent is worth one more request."""
    code, details = error.code(), error.details() or ""
    kind = _ERRORS.get(code, PassingError)
    if any(text in details for text in _AWAY.get(code, ())):
        kind = UnavailableError
    elif code is grpc.StatusCode.INTERNAL:
        kind = next((kind for text, kind in _PERMANENT.items() if text in details), kind)
    return kind(f"{code.name}: {details}" + (f" ({url})" if url else ""))
