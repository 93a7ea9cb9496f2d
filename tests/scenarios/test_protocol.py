"""docs/protocol.md: its examples are run as printed, and its errors provoked, on one real server behind its door."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from preference_embedded.door import rest

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
#: An example, and what it prints.
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```\n\n```(?:json|text)\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL)

ENSEMBLE = "preference_ensemble"
MISTAKES: dict[str, dict[str, Any]] = {
    "a tensor is missing": {"inputs": {"response_b": None}},
    "a tensor is unknown": {"inputs": {"respons_b": {"datatype": "BYTES", "shape": [1, 1], "data": ["No."]}}},
    "another datatype": {"inputs": {"prompt": {"datatype": "INT32", "shape": [1, 1], "data": [1]}}},
    "two battles in one request": {"inputs": {"prompt": {"datatype": "BYTES", "shape": [2, 1], "data": ["Hi", "Hi"]}}},
    "a shape without its data": {"inputs": {"prompt": {"datatype": "BYTES", "shape": [1, 2], "data": ["Hi"]}}},
    "fields of different lengths": {
        "inputs": {"response_b": {"datatype": "BYTES", "shape": [1, 2], "data": ["Go away.", "No."]}}
    },
    "text that cannot be read": {"inputs": {"prompt": {"datatype": "BYTES", "shape": [1, 1], "data": ["H\0i"]}}},
    "too many turns": {"inputs": {"prompt": {"datatype": "BYTES", "shape": [1, 1001], "data": ["Hi"] * 1001}}},
    "too few weights": {"inputs": {"weights": {"datatype": "FP32", "shape": [1, 1], "data": [1.0]}}},
    "negative weights": {"inputs": {"weights": {"datatype": "FP32", "shape": [1, 2], "data": [-1.0, 1.0]}}},
    "a parameter": {"parameters": {"timeout": 1000}},
    "an unknown output": {"outputs": [{"name": "logits"}]},
    "a member": {"model": "gemma"},
    "an unknown version": {"version": "99"},
}


def server_bin():
    return Path(os.environ["PREFERENCE_SERVER_PYTHON"]).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(demo):
    """`host:port` by service of a running `preference-serve`."""
    command = [server_bin() / "preference-serve", "configs/demo.toml", "--json"]
    ports = [f"--{service}-port=0" for service in ("grpc", "http", "metrics")]
    with subprocess.Popen([*command, *ports], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)


def replaced(text, places):
    for old, new in places.items():
        text = text.replace(old, new)
    return text


def likeness(text):
    """`text` with fractions, versions and white space made alike; JSON by its values."""
    with contextlib.suppress(ValueError):
        text = json.dumps(json.loads(text))
    text = re.sub(r'(Known: `|model_version": ")\d+', r"\1#", re.sub(r"\d+\.\d*(e-?\d+)?", "#", text))
    return re.sub(r"\s+", " ", text).replace("[ ", "[").strip()


def output_of_shell(example, folder):
    for name in ("configs", "build"):
        (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {"PATH": f"{server_bin()}:{os.environ['PATH']}"}
    command = ["bash", "-euc", example]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def output_of_python(examples):
    """What the last of `examples` prints; each goes on where the one before ended."""
    scope: dict[str, Any] = {}
    for example in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(example, scope)
    return printed.getvalue()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_protocol_prints_what_it_says(served, tmp_path, number):
    places = {"localhost:8000": served["http"], "localhost:8001": served["grpc"], "localhost:8002": served["metrics"]}
    places["8443"] = str(free_port())
    examples = [(language, replaced(example, places)) for language, example, _ in EXAMPLES[: number + 1]]
    language, example = examples[-1]
    if language == "sh":
        output = output_of_shell(example, tmp_path)
    else:
        output = output_of_python([example for language, example in examples if language == "python"])
    assert likeness(output) == likeness(EXAMPLES[number][2])


def test_every_block_of_the_protocol_is_an_example_with_its_output():
    assert PROTOCOL.count("```") == 4 * len(EXAMPLES)


def by_http(address, body, model, version):
    path = f"http://{address}/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(path, json.dumps(body).encode(), timeout=20)
    return caught.value.code, json.loads(caught.value.read())["error"]


def by_grpc(address, body, model, version):
    data = json.dumps(body).encode()
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            rest.request_of(data, len(data), model, version), timeout=20
        )
    return caught.value.code().name, caught.value.details()


def answer_to(mistake, served):
    """gRPC's code, HTTP's status and the message, which both give."""
    change = dict(MISTAKES[mistake])
    texts = {"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}
    inputs = {name: {"datatype": "BYTES", "shape": [1, 1], "data": [text]} for name, text in texts.items()}
    inputs |= change.pop("inputs", {})
    model, version = change.pop("model", ENSEMBLE), change.pop("version", "")
    body = {"inputs": [{"name": name} | tensor for name, tensor in inputs.items() if tensor], **change}
    code, message = by_grpc(served["grpc"], body, model, version)
    assert by_http(served["http"], body, model, version)[1] == message
    return code, by_http(served["http"], body, model, version)[0], message


def test_each_mistake_is_answered_as_the_table_says(served):
    observed = "".join("| {} | {}, {} | {} |\n".format(mistake, *answer_to(mistake, served)) for mistake in MISTAKES)
    (table,) = re.findall(
        r"^\| mistake \| status \| message \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PROTOCOL, re.MULTILINE
    )
    assert likeness(observed) == likeness(table)


@pytest.fixture
def stub(served):
    with grpc.insecure_channel(served["grpc"], [("grpc.max_send_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def battle(characters):
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE)
    for name in ("prompt", "response_a", "response_b"):
        request.inputs.add(name=name, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(characters.to_bytes(4, "little") + b"a" * characters)
    return request


def test_what_is_too_large_by_grpc_is_refused_as_the_limits_say(stub):
    for characters, code in ((8 * 2**20, "INVALID_ARGUMENT"), (16 * 2**20, "RESOURCE_EXHAUSTED")):
        assert stub.ModelInfer.future(battle(characters), timeout=60).code().name == code


def test_what_is_closed_to_clients_is_unimplemented(stub):
    assert stub.RepositoryIndex.future(service_pb2.RepositoryIndexRequest()).code().name == "UNIMPLEMENTED"
    assert stub.ModelInfer.future(battle(1), compression=grpc.Compression.Gzip).code().name == "UNIMPLEMENTED"


def test_an_overload_is_unavailable_at_once(stub):
    calls = [stub.ModelInfer.future(battle(300), timeout=60) for _ in range(400)]
    refused = [call for call in calls if call.code().name != "OK"]
    assert 0 < len(refused) < len(calls)
    assert {call.code().name for call in refused} == {"UNAVAILABLE"}
    assert "`serving.latency_goal_milliseconds`" in refused[0].details()


@pytest.mark.parametrize(
    ("status", "path", "method", "body", "headers"),
    [
        (404, "/v2/repository/index", "POST", b"", {}),
        (405, f"/v2/models/{ENSEMBLE}/infer", "GET", None, {}),
        (411, f"/v2/models/{ENSEMBLE}/infer", "POST", [b"{}"], {}),
        (413, f"/v2/models/{ENSEMBLE}/infer", "POST", b" " * (34 * 2**20), {}),
        (415, f"/v2/models/{ENSEMBLE}/infer", "POST", b"{}", {"Content-Encoding": "gzip"}),
        (400, f"/v2/models/{ENSEMBLE}/infer", "POST", b" " * (5 * 2**20), {}),
    ],
)
def test_a_status_of_http_is_what_the_tables_say(served, status, path, method, body, headers):
    connection = http.client.HTTPConnection(served["http"], timeout=20)
    with contextlib.closing(connection):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body, headers)
        assert connection.getresponse().status == status
