"""Requests that nobody would think of, by gRPC and HTTP: the server that got them goes on, in no more memory.

`make test-soak` sends them for ten minutes (PREFERENCE_SOAK_FUZZ_S).
"""

import itertools
import json
import os
import socket
import time

import grpc
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from served import JSON_BATTLE, TEXTS, battle_request, get, serving

from preference_core import tensors

FUZZ_S = float(os.environ.get("PREFERENCE_SOAK_FUZZ_S", "0"))
#: Requests by each protocol in one round; without a time, one round is all.
ROUND = 150
MAX_GROWTH_MIB = 64
MAX_ANSWER_S = 10

INTEGERS = st.sampled_from([0, 1, 2, -1, 64, 10**8, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)]) | st.integers(0, 9)
NAMES = st.sampled_from([*TEXTS, "weights", "probabilities", "dropped_tokens", ""]) | st.text(max_size=200)
MODELS = st.sampled_from([tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC, "gemma", "tokenize", "../x", ""])
DTYPES = st.sampled_from(["BYTES", "FP32", "INT32", "INT64", "BOOL", "FP16", "bytes", ""])
PARAMETERS = st.sampled_from(["timeout", "priority", "sequence_id", "binary_data_output", "shared_memory_region", "\n"])
LENGTHS = st.sampled_from([0, 1, 8, 100, 2**31 - 1, 2**31, 2**32 - 1])
CHANGES = (
    *("model", "version", "id", "parameter", "name", "dtype", "shape", "length", "contents", "typed", "twice"),
    *("input", "output", "flip", "cut", "append", "noise"),
)
METHODS = ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady", "RepositoryIndex")
EXPECTED = {
    grpc.StatusCode[name]
    for name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@st.composite
def messages(draw):
    """The bytes of a battle with up to four changes."""
    request, wild = battle_request(), []
    for change in draw(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4)):
        index = draw(st.integers(0, 2))
        tensor = request.inputs[index]
        match change:
            case "model":
                request.model_name = draw(MODELS | st.text(max_size=50))
            case "version":
                request.model_version = draw(st.sampled_from(["1", "2", "-1", "99999999999999999999"]) | st.text())
            case "id":
                request.id = draw(st.text(max_size=200))
            case "parameter":
                draw(st.sampled_from([request, tensor])).parameters[draw(PARAMETERS)].int64_param = draw(INTEGERS)
            case "name":
                tensor.name = draw(NAMES)
            case "dtype":
                tensor.datatype = draw(DTYPES)
            case "shape":
                tensor.shape[:] = draw(st.lists(INTEGERS, max_size=9))
            case "length" if request.raw_input_contents:
                request.raw_input_contents[-1] = draw(LENGTHS).to_bytes(4, "little") + draw(st.binary(max_size=100))
            case "contents" if request.raw_input_contents:
                request.raw_input_contents[0] = draw(st.binary(max_size=300))
            case "typed":
                del request.raw_input_contents[:]
                tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=50), max_size=5)))
            case "twice":
                request.inputs.add().CopyFrom(tensor)
                request.raw_input_contents.append(b"\x01\0\0\0x")
            case "input":
                request.inputs.add(name=draw(NAMES), datatype=draw(DTYPES), shape=draw(st.lists(INTEGERS, max_size=4)))
                request.raw_input_contents.append(draw(st.binary(max_size=40)))
            case "output":
                request.outputs.add(name=draw(NAMES))
            case _:
                wild.append(change)
    data = bytearray(request.SerializeToString())
    for change in wild:
        if change == "flip" and data:
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[draw(st.integers(0, len(data))) :]
        elif change == "noise":
            data[:] = draw(st.binary(max_size=500))
        else:
            data += draw(st.binary(max_size=100))
    return bytes(data)


@st.composite
def bodies(draw):
    """A JSON battle with a change somewhere, or no battle at all."""
    kind = draw(st.sampled_from(["value", "key", "element", "cut", "nested", "noise"]))
    if kind == "noise":
        return draw(st.binary(max_size=500))
    if kind == "nested":
        depth = draw(st.sampled_from([10, 1000, 100_000]))
        return b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
    body = json.loads(json.dumps(JSON_BATTLE))
    tensor = body["inputs"][draw(st.integers(0, 2))]
    if kind == "value":
        tensor[draw(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]))] = draw(JSON_VALUES)
    elif kind == "key":
        draw(st.sampled_from([body, tensor]))[draw(NAMES)] = draw(JSON_VALUES)
    elif kind == "element":
        tensor["shape"], tensor["data"] = draw(st.lists(INTEGERS, max_size=4)), draw(st.lists(JSON_VALUES, max_size=4))
    text = json.dumps(body).encode()
    return text[: draw(st.integers(0, len(text)))] if kind == "cut" else text


@st.composite
def http_requests(draw):
    """Bytes for the port of HTTP: most of them a request, some not."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=300))
    body = draw(bodies())
    verb = draw(st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "OPTIONS", "CONNECT", "TRACE", "X"]))
    path = draw(st.sampled_from(["/infer", "/config", "/stats", "/ready", "", "/versions/1/infer", "/%00", "/../.."]))
    headers = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close"}
    for name in draw(st.lists(st.sampled_from(["length", "json", "coding", "transfer", "odd"]), max_size=2)):
        headers |= {
            "length": {"Content-Length": str(draw(INTEGERS))},
            "json": {"Inference-Header-Content-Length": str(draw(INTEGERS))},
            "coding": {"Content-Encoding": draw(st.sampled_from(["gzip", "deflate", "br", "identity"]))},
            "transfer": {"Transfer-Encoding": draw(st.sampled_from(["chunked", "gzip", "identity, chunked"]))},
            "odd": {draw(st.sampled_from(["Expect", "Upgrade", "Range", "Cookie"])): "100-continue" * 50},
        }[name]
    head = f"{verb} /v2/models/{draw(MODELS)}{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    return head.encode() + b"\r\n" + body


def sent_by_http(url, data):
    """The first bytes of the answer; none where the connection is closed, or the request is incomplete for the door."""
    host, _, port = url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=MAX_ANSWER_S) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096)
        except ConnectionError:
            return b""


def round_of_fuzz(serve, channel, number):
    """Sends ROUND requests by each protocol; returns the longest time that an answer took."""
    took = [0.0]
    calls = {name: channel.unary_unary(f"/inference.GRPCInferenceService/{name}") for name in ("ModelInfer", *METHODS)}
    rules = settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @rules
    @seed(number)
    @given(method=st.sampled_from(["ModelInfer"] * 9 + ["other"]), other=st.sampled_from(METHODS), data=messages())
    def by_grpc(method, other, data):
        began, code = time.monotonic(), grpc.StatusCode.OK
        try:
            calls[other if method == "other" else method](data, timeout=MAX_ANSWER_S)
        except grpc.RpcError as error:
            code = error.code()
        took.append(time.monotonic() - began)
        assert code in EXPECTED, (code, data)

    @rules
    @seed(number)
    @given(http_requests())
    def by_http(data):
        began = time.monotonic()
        answer = sent_by_http(serve.urls["http"], data)
        took.append(time.monotonic() - began)
        assert not answer or answer.startswith(b"HTTP/1."), answer
        assert b" 500 " not in answer[:14], (answer, data)

    by_grpc()
    by_http()
    return max(took)


@pytest.fixture
def serve(demo, tmp_path):
    with serving(tmp_path / "server.log") as serve:
        yield serve


def test_no_request_ends_the_server_or_takes_its_memory(serve, measured):
    began, first, worst = time.monotonic(), serve.triton, 0.0
    with grpc.insecure_channel(serve.urls["grpc"]) as channel:
        for number in itertools.count():
            worst = max(worst, round_of_fuzz(serve, channel, number))
            assert serve.triton == first, serve.said.read_text()
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
                battle_request().SerializeToString(), timeout=MAX_ANSWER_S
            )
            assert get(serve.urls["http"], "/v2/health/ready")[0] == 200
            if number == 0:
                before = serve.memory_mib()
            if time.monotonic() - began >= FUZZ_S:
                break
    after = serve.memory_mib()
    growth = {name: after[name] - before[name] for name in before}
    assert max(growth.values()) < MAX_GROWTH_MIB, growth
    measured(
        f"{2 * ROUND * (number + 1):,} requests in {time.monotonic() - began:.0f} s: same process, longest answer "
        f"{worst:.1f} s, memory at most {max(growth.values()):.0f} MiB more"
    )
