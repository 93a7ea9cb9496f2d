"""The container's health check: exits with 0 if the server has answered a battle since its start and is ready now.

It asks by gRPC, as clients do. The image has no library for that: a call without one takes four frames of HTTP/2
(RFC 9113), whose headers need no compression; and of the answer only the message counts, which a refused call lacks.
"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from preference_core.tensors import ENSEMBLE, FIELDS, bytes_contents

PORT = 8001
#: The first battle may find cold kernels, and releases before 25.12 do not survive that it is given up.
BATTLE_TIMEOUT_S = 25.0
READY_TIMEOUT_S = 2.0

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
#: Of the standard gRPC health service.
SERVING = b"\x08\x01"


def main() -> None:
    """Asks for a battle until one was answered, from then on whether every model is ready."""
    answered = Path(os.environ["PREFERENCE_ANSWERED"])
    if not answered.exists():
        call("inference.GRPCInferenceService/ModelInfer", battle(), BATTLE_TIMEOUT_S)
        with suppress(OSError):  # Where nothing can be kept, each check asks for a battle.
            answered.touch()
    elif call("grpc.health.v1.Health/Check", b"", READY_TIMEOUT_S) != SERVING:
        raise ConnectionError("not every model is ready")


def battle() -> bytes:
    """A battle as Triton's ModelInferRequest."""
    inputs = [field(1, name) + field(2, b"BYTES") + field(3, b"\1\1") for name in map(str.encode, FIELDS)]
    texts = field(7, bytes_contents([b"Ready?"])) * len(FIELDS)
    return field(1, ENSEMBLE.encode()) + b"".join(field(5, tensor) for tensor in inputs) + texts


def field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message, of at most 127 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def call(method: str, message: bytes, timeout_s: float) -> bytes:
    """What the server answers; ConnectionError if it refuses."""
    headers = (
        b"\x83\x86"  # POST, http
        + header(b"\x04", f"/{method}")
        + header(b"\x01", "localhost")
        + header(b"\x0f\x10", "application/grpc")  # content-type
        + header(b"\x00\x02te", "trailers")
    )
    request = b"\0" + len(message).to_bytes(4, "big") + message
    with socket.create_connection(("127.0.0.1", PORT), timeout_s) as connection, connection.makefile("rb") as stream:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, headers))
        connection.sendall(frame(DATA, END_STREAM, 1, request))
        answer = b""
        while len(head := stream.read(9)) == 9:
            content = stream.read(int.from_bytes(head[:3], "big"))
            kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big")
            if kind == SETTINGS and not flags & ACK:
                connection.sendall(frame(SETTINGS, ACK, 0, b""))
            if kind == DATA:
                answer += content
            if kind in (RST_STREAM, GOAWAY) or (number == 1 and kind in (DATA, HEADERS) and flags & END_STREAM):
                break
    if len(answer) <= 5:
        raise ConnectionError(f"{method} was refused")
    return answer[5:]


def header(name: bytes, value: str) -> bytes:
    """A header that is not to be indexed; `name` is its index in HPACK's table, or the name itself (RFC 7541)."""
    return name + bytes([len(value)]) + value.encode()


def frame(kind: int, flags: int, number: int, content: bytes) -> bytes:
    """A frame of HTTP/2 on the stream of that number."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + content


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"not ready: {error}")
