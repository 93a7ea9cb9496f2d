"""What clients may send that kills the bundled tritonserver: the door in front refuses or outlives it.

Every test ends with a battle that gets the same answer as before. Nothing restarts the server here unless a test does:
a restart would hide that it died.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc as plain
import numpy as np
import pytest
import tritonclient.grpc as grpc
from served import JSON_BATTLE, TEXTS, battle_request, get
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from preference_client.scorer import Scorer
from preference_core import tensors

ENSEMBLES = (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC)


@pytest.fixture(autouse=True)
def answered_rightly_afterwards(guarded, battles):
    """After each test both ensembles answer as before, and nothing of the server has died."""
    with Scorer(guarded.urls["grpc"]) as scorer, Scorer(guarded.urls["grpc"], symmetric=True) as symmetric:
        before = [each.score(battles[0]).probabilities for each in (scorer, symmetric)]
        yield
        assert guarded.lost() is None
        after = [each.score(battles[0]).probabilities for each in (scorer, symmetric)]
    assert np.abs(np.array(after) - before).max() <= 1e-5


def refusal(call, request):
    """The status code and message with which a request is refused; it must not take long."""
    began = time.monotonic()
    with pytest.raises(plain.RpcError) as caught:
        call(request, timeout=20)
    assert time.monotonic() - began < 5
    return caught.value.code(), caught.value.details()


def post(guarded, body, model=tensors.ENSEMBLE):
    """Status and JSON of the answer to a POST by HTTP."""
    status, answer = get(guarded.urls["http"], f"/v2/models/{model}/infer", json.dumps(body).encode())
    return status, json.loads(answer)


def status_of(guarded, path):
    return get(guarded.urls["http"], path)[0]


def given_up(stub, model, wanted, deadline_s, *, cancel):
    """Sends battles, as many at a time as the door lets in at first, until `wanted` calls were given up by the client.

    Returns the status codes of all.
    """
    codes = []
    gone = plain.StatusCode.CANCELLED if cancel else plain.StatusCode.DEADLINE_EXCEEDED
    while codes.count(gone) < wanted:
        assert len(codes) < 10_000
        calls = [stub.ModelInfer.future(battle_request(model, words=200), timeout=deadline_s) for _ in range(32)]
        time.sleep(0.01)
        if cancel:
            for call in calls:
                call.cancel()
        codes += [call.code() for call in calls]
    return set(codes)


@pytest.mark.parametrize("model", ENSEMBLES)
def test_fifty_requests_whose_deadline_passes_are_answered_for_nobody(stub, model):
    codes = given_up(stub, model, 50, 0.02, cancel=False)
    assert codes <= {plain.StatusCode.DEADLINE_EXCEEDED, plain.StatusCode.OK, plain.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("model", ENSEMBLES)
def test_a_hundred_cancelled_requests_are_answered_for_nobody(stub, model):
    codes = given_up(stub, model, 100, 20, cancel=True)
    assert codes <= {plain.StatusCode.CANCELLED, plain.StatusCode.OK, plain.StatusCode.UNAVAILABLE}


def test_a_killed_client_leaves_no_trace(guarded):
    code = (
        "import sys; from preference_client.scorer import Scorer; scorer = Scorer(sys.argv[1], max_in_flight=64);"
        "print('go', flush=True); list(scorer.score_many([{'prompt': 'a ' * 300, 'response_a': 'b', 'response_b': 'c'}]"
        " * 10000))"
    )
    with subprocess.Popen([sys.executable, "-c", code, guarded.urls["grpc"]], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.5)
        process.kill()


@pytest.mark.parametrize("model", ENSEMBLES)
def test_a_timeout_parameter_is_refused(guarded, model):
    inputs = []
    for name, text in TEXTS.items():
        tensor = grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
        inputs.append(tensor)
    with grpc.InferenceServerClient(guarded.urls["grpc"]) as client:
        for _ in range(20):
            with pytest.raises(InferenceServerException, match="parameter `timeout`") as caught:
                client.infer(model, inputs, timeout=1)
            assert "INVALID_ARGUMENT" in caught.value.status()


def test_a_timeout_parameter_is_refused_by_http(guarded):
    status, answer = post(guarded, {**JSON_BATTLE, "parameters": {"timeout": 1}})
    assert status == 400
    assert "parameter `timeout`" in answer["error"]


@pytest.mark.parametrize("turns", [2**63, 2**62, 10**8, -1])
def test_a_shape_that_does_not_fit_its_data_is_refused_by_http(guarded, turns):
    body = {"inputs": [{**tensor, "shape": [1, turns]} for tensor in JSON_BATTLE["inputs"]]}
    status, answer = post(guarded, body)
    assert status == 400
    assert "`prompt`" in answer["error"]


def test_a_battle_is_answered_by_http(guarded):
    status, answer = post(guarded, JSON_BATTLE)
    assert status == 200, answer
    probabilities = next(output["data"] for output in answer["outputs"] if output["name"] == "probabilities")
    assert sum(probabilities) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("model", ENSEMBLES)
@pytest.mark.parametrize("length", [100, 2**31, 2**32 - 1])
def test_an_element_longer_than_its_data_is_refused(stub, model, length):
    request = battle_request(model)
    request.raw_input_contents[1] = length.to_bytes(4, "little") + b"Because."
    code, message = refusal(stub.ModelInfer, request)
    assert code is plain.StatusCode.INVALID_ARGUMENT
    assert "`response_a` ends within turn 0 of 1" in message


@pytest.mark.parametrize("member", ["gemma", "llama", "tokenize", "combine", "none"])
def test_what_is_no_ensemble_is_not_there_for_clients(guarded, stub, member):
    for call, request in (
        (stub.ModelInfer, battle_request(member)),
        (stub.ModelConfig, service_pb2.ModelConfigRequest(name=member)),
        (stub.ModelReady, service_pb2.ModelReadyRequest(name=member)),
    ):
        code, message = refusal(call, request)
        assert code is plain.StatusCode.NOT_FOUND
        assert f"no model `{member}`" in message
    assert status_of(guarded, f"/v2/models/{member}/config") == 404
    assert post(guarded, JSON_BATTLE, member)[0] == 404


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging", "/..%2fv2"])
def test_other_interfaces_are_closed_by_http(guarded, path):
    assert status_of(guarded, path) in (404, 405)


def test_other_interfaces_are_closed_by_grpc(stub):
    for call, request in (
        (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name=tensors.ENSEMBLE)),
        (stub.SystemSharedMemoryStatus, service_pb2.SystemSharedMemoryStatusRequest()),
        (stub.LogSettings, service_pb2.LogSettingsRequest()),
    ):
        assert refusal(call, request)[0] is plain.StatusCode.UNIMPLEMENTED


def test_shared_memory_of_an_input_is_refused(stub):
    request = battle_request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    code, message = refusal(stub.ModelInfer, request)
    assert code is plain.StatusCode.INVALID_ARGUMENT
    assert "parameter `shared_memory_region`" in message


def test_text_and_turns_beyond_the_limits_are_refused_before_they_are_tokenised(demo, stub):
    serving = demo.config.serving
    code, message = refusal(stub.ModelInfer, battle_request(words=serving.max_text_bytes // 15))
    assert code is plain.StatusCode.INVALID_ARGUMENT
    assert "`serving.max_text_bytes`" in message
    request = battle_request()
    for index, tensor in enumerate(request.inputs):
        tensor.shape[:] = [1, serving.max_turns + 1]
        request.raw_input_contents[index] = bytes(4 * (serving.max_turns + 1))
    code, message = refusal(stub.ModelInfer, request)
    assert code is plain.StatusCode.INVALID_ARGUMENT
    assert "`serving.max_turns`" in message


def test_bytes_that_are_no_message_are_refused(guarded):
    with plain.insecure_channel(guarded.urls["grpc"]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for data in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", battle_request().SerializeToString()[:-3]):
            assert refusal(infer, data)[0] is plain.StatusCode.INVALID_ARGUMENT


def test_what_is_too_much_is_refused_at_once_and_the_rest_is_answered_in_time(guarded, stub, measured):
    """Thousands of battles at once, many times what is answered within the latency goal."""

    def ask(_):
        began = time.monotonic()
        try:
            stub.ModelInfer(battle_request(words=100), timeout=60)
            return plain.StatusCode.OK, time.monotonic() - began
        except plain.RpcError as error:
            return error.code(), time.monotonic() - began

    with ThreadPoolExecutor(max_workers=300) as pool:
        asked = [pool.submit(ask, number) for number in range(6000)]
        healthy = []
        while not all(future.done() for future in asked):
            began = time.monotonic()
            assert status_of(guarded, "/v2/health/live") == 200
            healthy.append(time.monotonic() - began)
            time.sleep(0.1)
    results = [future.result() for future in asked]
    assert {code for code, _ in results} == {plain.StatusCode.OK, plain.StatusCode.UNAVAILABLE}
    refusals = [seconds for code, seconds in results if code is plain.StatusCode.UNAVAILABLE]
    answers = [seconds for code, seconds in results if code is plain.StatusCode.OK]
    # The 300 threads of this client share one process with the door: their own delays are in these figures, which
    # `benchmarks/front_door.py` measures from outside.
    assert max(refusals + answers + healthy) < 30
    measured(
        f"99 % refused within {np.quantile(refusals, 0.99):.1f} s, answered within {np.quantile(answers, 0.99):.1f} s, "
        f"health within {max(healthy):.1f} s, 300 clients in one process with the door"
    )


def test_thousands_of_calls_at_once_are_all_answered_or_refused_by_the_door(stub):
    calls = [stub.ModelInfer.future(battle_request(), timeout=300) for _ in range(4000)]
    assert {call.code() for call in calls} <= {plain.StatusCode.OK, plain.StatusCode.UNAVAILABLE}


def test_a_killed_server_is_restarted_behind_open_ports_that_say_so_meanwhile(guarded, stub):
    def ask_until(done):
        codes = set()
        while not done.is_set():
            assert status_of(guarded, "/v2/health/live") == 200
            try:
                stub.ModelInfer(battle_request(), timeout=20)
            except plain.RpcError as error:
                codes.add(error.code())
        return codes

    os.kill(guarded.pid, signal.SIGKILL)
    while guarded.lost() is None:
        time.sleep(0.05)
    done = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        asking = pool.submit(ask_until, done)
        guarded.restart()
        done.set()
    assert asking.result() == {plain.StatusCode.UNAVAILABLE}
