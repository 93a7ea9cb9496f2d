"""The door's gRPC side: the methods of Triton's service that clients may call. Every other one is UNIMPLEMENTED.

Messages come and go as bytes; only requests that carry something are parsed.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from preference_embedded.door.contract import Refused, invalid
from preference_embedded.door.desk import Desk, UpstreamError
from preference_embedded.door.upstream import UNLIMITED

#: `grpc.health.v1.HealthCheckResponse` with the status SERVING, and NOT_SERVING.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_STREAMS = 8192
IDENTITY_ONLY = 1

Handler = Callable[[bytes, Any], Awaitable[bytes]]


def options(message_bytes: int) -> tuple[tuple[str, int], ...]:
    """Settings of the gRPC server: what one client, or one message, may take."""
    return (
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.so_reuseport", 0),
        # gRPC cancels calls beyond these before the door sees them; what was cancelled, clients do not send again.
        ("grpc.server.max_pending_requests", UNLIMITED),
        ("grpc.server.max_pending_requests_hard_limit", UNLIMITED),
        # A compressed message is unpacked before its size is known.
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
    )


def handlers(desk: Desk) -> tuple[Any, ...]:
    """The methods, ready for `add_generic_rpc_handlers`."""

    async def infer(data: bytes, context: Any) -> bytes:
        return await desk.infer(data)

    async def live(data: bytes, context: Any) -> bytes:
        return _bytes(service_pb2.ServerLiveResponse(live=True))

    async def ready(data: bytes, context: Any) -> bytes:
        return _bytes(service_pb2.ServerReadyResponse(ready=desk.ready))

    async def health(data: bytes, context: Any) -> bytes:
        return SERVING if desk.ready else NOT_SERVING

    async def model_ready(data: bytes, context: Any) -> bytes:
        request = _parsed(service_pb2.ModelReadyRequest, data)
        if desk.ready:
            desk.check_model(request.name, request.version)
        return _bytes(service_pb2.ModelReadyResponse(ready=desk.ready))

    async def server_metadata(data: bytes, context: Any) -> bytes:
        return await _asked(desk, "ServerMetadata", service_pb2.ServerMetadataRequest())

    methods: dict[str, Handler] = {
        "ModelInfer": infer,
        "ServerLive": live,
        "ServerReady": ready,
        "ModelReady": model_ready,
        "ServerMetadata": server_metadata,
        "ModelMetadata": _about_model(desk, "ModelMetadata"),
        "ModelConfig": _about_model(desk, "ModelConfig"),
        "ModelStatistics": _about_model(desk, "ModelStatistics"),
    }
    return (
        _handler("inference.GRPCInferenceService", methods),
        _handler("grpc.health.v1.Health", {"Check": health}),
    )


def _handler(service: str, methods: dict[str, Handler]) -> Any:
    named = {name: grpc.unary_unary_rpc_method_handler(_answering(method)) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(service, named)


def _answering(method: Handler) -> Handler:
    """`method` with its exceptions as status codes."""

    async def answer(data: bytes, context: Any) -> bytes:
        try:
            return await method(data, context)
        except Refused as error:
            await context.abort(grpc.StatusCode[error.reason.name], error.message)
        except UpstreamError as error:
            await context.abort(error.code, error.message)
        raise AssertionError("abort raises")

    return answer


def _about_model(desk: Desk, method: str) -> Handler:
    """A method that asks the server about one ensemble."""
    kind = getattr(service_pb2, f"{method}Request")

    async def answer(data: bytes, context: Any) -> bytes:
        request = _parsed(kind, data)
        desk.check_model(request.name, request.version)
        return await _asked(desk, method, kind(name=request.name, version=request.version))

    return answer


async def _asked(desk: Desk, method: str, request: Any) -> bytes:
    try:
        return _bytes(await desk.server().call(method, request, getattr(service_pb2, f"{method}Response")))
    except grpc.aio.AioRpcError as error:
        raise UpstreamError(error.code(), error.details() or "The server gave no reason") from error


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise invalid(f"The message is not a {kind.DESCRIPTOR.name}") from error


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
