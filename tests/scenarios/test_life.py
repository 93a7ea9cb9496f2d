"""What a running server goes through: engines that stall, stops under load, hours of work, text made to look like log.

`make test-soak` takes 50,000 battles for the check of its memory (PREFERENCE_SOAK_MEMORY_BATTLES).
"""

import os
import re
import shutil
import signal
import time
from contextlib import suppress

import grpc
import pytest
from served import battle_request, get, serving
from tritonclient.grpc import service_pb2_grpc

from preference_core import tensors
from preference_core.artefacts.manifest import Manifest, write_manifest
from preference_embedded.processes import stubs_of

MEMORY_BATTLES = int(os.environ.get("PREFERENCE_SOAK_MEMORY_BATTLES", "240"))
#: Of any process, while it answers so many battles after as many that warm it up.
MAX_GROWTH_MIB = 24
#: Of a model that keeps half a MiB for each battle.
LEAK = "\n\n_KEPT = []\n_execute = TritonPythonModel.execute\n\n\ndef _leak(self, requests):\n"
LEAK += "    _KEPT.append(bytearray(b'x') * 2**19)\n    return _execute(self, requests)\n\n\n"
LEAK += "TritonPythonModel.execute = _leak\n"
OK = grpc.StatusCode.OK
SYMMETRIC = battle_request(tensors.ENSEMBLE_SYMMETRIC, words=20)


def stub_of(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def codes_of(calls):
    return [call.code() for call in calls]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_stalled_engine_costs_one_error_per_request_and_the_next_are_answered(demo, tmp_path, measured, goes_on):
    """The bundled tritonserver itself dies of an engine that does nothing for a second, most of the time."""
    with serving(tmp_path / "server.log") as serve, grpc.insecure_channel(serve.urls["grpc"]) as channel:
        pid = next(pid for pid, name in stubs_of(serve.triton).items() if name.startswith("llama"))
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        waiting = [stub_of(channel).ModelInfer.future(battle_request(), timeout=1 if goes_on else 60) for _ in range(8)]
        expected = {grpc.StatusCode.UNAVAILABLE} | ({grpc.StatusCode.DEADLINE_EXCEEDED} if goes_on else set())
        assert set(codes_of(waiting)) <= expected
        told_s = time.monotonic() - began
        with suppress(ProcessLookupError):  # A restart has ended it.
            os.kill(pid, signal.SIGCONT if goes_on else 0)
        while (call := stub_of(channel).ModelInfer.future(battle_request(), timeout=60)).code() is not OK:
            assert call.code() is grpc.StatusCode.UNAVAILABLE, call.details()
            time.sleep(0.05)
        again_s = time.monotonic() - began
    measured(f"{'goes on' if goes_on else 'for good'}: errors after {told_s:.1f} s, answers after {again_s:.1f} s")


def test_sigterm_under_load_answers_what_was_let_in_refuses_the_rest_and_leaves_nothing(demo, tmp_path, measured):
    with serving(tmp_path / "server.log") as serve, grpc.insecure_channel(serve.urls["grpc"]) as channel:
        calls, let_in, under_way = [], 0, 0
        while not under_way:
            calls += [stub_of(channel).ModelInfer.future(SYMMETRIC, timeout=120) for _ in range(64)]
            let_in, under_way = (
                int(serve.metric(f"preference_battles_{name}")) for name in ("accepted_total", "under_way")
            )
        began = time.monotonic()
        serve.process.send_signal(signal.SIGTERM)
        codes = codes_of(calls)
        assert serve.process.wait(60) == 0, serve.said.read_text()
        stopped_s = time.monotonic() - began
        assert set(codes) <= {OK, grpc.StatusCode.UNAVAILABLE}
        assert codes.count(OK) >= let_in
        assert serve.traces() == []
    measured(
        f"{under_way} battles under way at SIGTERM: all answered, {codes.count(OK)} of {len(codes)} in all, the others "
        f"refused; stopped after {stopped_s:.1f} s"
    )


def growth_mib(serve, battles, enough):
    """By how much the process that grew most has grown while `battles` were answered, after as many before.

    It stops early where that is more than `enough`.
    """
    grown, before = 0.0, {}
    with grpc.insecure_channel(serve.urls["grpc"]) as channel:
        for number in range(-battles, battles, 16):
            codes = codes_of([stub_of(channel).ModelInfer.future(SYMMETRIC, timeout=60) for _ in range(16)])
            assert codes == [OK] * 16
            if number >= 0 and (number // 16) % 5 == 0:
                now = serve.memory_mib()
                before = before or now
                grown = max(now[name] - before[name] for name in now)
                if grown > enough:
                    break
    return grown


def test_the_memory_of_no_process_grows_with_the_battles(demo, tmp_path, measured):
    with serving(tmp_path / "server.log") as serve:
        grown = growth_mib(serve, MEMORY_BATTLES, MAX_GROWTH_MIB)
        assert grown < MAX_GROWTH_MIB, serve.memory_mib()
    measured(f"{MEMORY_BATTLES:,} battles in both orders: at most {grown:.1f} MiB more in any process")


def test_a_leak_of_a_model_is_caught_by_the_same_check(demo, tmp_path, measured):
    shutil.copytree(demo.folder / "repository", tmp_path / "repository")
    program = max(
        (tmp_path / "repository/combine_symmetric").glob("*/model.py"), key=lambda path: int(path.parent.name)
    )
    program.write_text(program.read_text() + LEAK)
    write_manifest(tmp_path / "repository", Manifest("repository", {}))
    with serving(tmp_path / "server.log", "--repository", str(tmp_path / "repository")) as serve:
        assert growth_mib(serve, 160, MAX_GROWTH_MIB) > MAX_GROWTH_MIB
    measured("a planted leak of 512 KiB for each battle is caught by the same check")


def test_no_text_of_a_user_and_no_control_character_of_a_client_gets_into_the_log(demo, tmp_path):
    secret = "zebra-4711"
    texts = [f"{secret}\x1b[2J", f"\nE1126 06:25:38.5 1 a.cc:1] {secret}", f"{secret}\r\n\0", f"{secret}\udcff\x9b"]
    log = tmp_path / "server.log"
    with serving(log) as serve, grpc.insecure_channel(serve.urls["grpc"]) as channel:
        for text in texts:
            for place in ("text", "id", "model", "input", "version", "unread"):
                request, data = battle_request(), text.encode("utf-8", "surrogateescape")
                readable = data.decode("utf-8", "ignore")
                if place in ("text", "unread"):
                    data += b"\xff" * (place == "unread")
                    request.raw_input_contents[1] = len(data).to_bytes(4, "little") + data
                elif place == "input":
                    request.inputs[0].name = readable
                else:
                    setattr(request, {"model": "model_name", "version": "model_version"}.get(place, place), readable)
                call = stub_of(channel).ModelInfer.future(request, timeout=20)
                assert call.code() in (
                    OK,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.NOT_FOUND,
                ), call.details()
                get(
                    serve.urls["http"], f"/v2/models/{secret}%0a%1b/infer", b'{"id": "\\u001b' + secret.encode() + b'"}'
                )
    for path in (log, serve.said):
        written = path.read_bytes().decode(errors="surrogateescape")
        assert secret not in written
        # Triton's HTTP library colours a warning of its own.
        assert re.findall(r"(?!\x1b\[[\d;]+m)[^\n\t -~\u00a0-\uffff]", written) == []
