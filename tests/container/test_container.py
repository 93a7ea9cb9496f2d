"""The project's container as users run it: built, started, attacked, stopped."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo_files import BATTLES, PREDICTIONS, repeated_battles

ROOT = Path(__file__).parents[2]
ENTRYPOINT_REFUSES = 2
#: Runs in the container, which has neither ps nor pgrep.
STUBS = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        name = (process / "cmdline").read_bytes().split(b"\\0")[0].decode()
    except OSError:
        continue
    if name.endswith("NAME"):
        print(process.name)
"""


def processes(stack: Any, name: str) -> list[str]:
    """Process ids, as the container counts, of the command called `name`."""
    return stack.engine("exec", stack.container, "python3", "-c", STUBS.replace("NAME", name)).split()  # type: ignore[no-any-return]


def score(output: Path, battles: Path = BATTLES) -> "subprocess.Popen[bytes]":
    """Starts scoring `battles`, by default the demo's test file."""
    command = [str(Path(sys.executable).with_name("preference-score")), str(battles)]
    return subprocess.Popen(
        [*command, "-o", str(output), "--url", "127.0.0.1:18001"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More than any server here scores in ten seconds."""
    return repeated_battles(tmp_path / "many.csv", 30)


def test_the_container_becomes_healthy_and_scores_as_the_demo_does(
    running: Any, metrics: Callable[[], str], tmp_path: Path
) -> None:
    assert score(tmp_path / "predictions.csv").wait(120) == 0
    expected = PREDICTIONS.read_bytes()
    assert (tmp_path / "predictions.csv").read_bytes() == expected
    # The health check had one answered before.
    rows = len(expected.splitlines()) - 1 + 1
    counted = re.findall(
        r'^nv_inference_request_success{model="preference_ensemble",.*} (\d+)$', metrics(), re.MULTILINE
    )
    assert sum(map(int, counted)) == rows  # Triton counts ensembles as version 1, whatever they are.


def test_confinement_as_seen_from_inside(running: Any) -> None:
    inside = running.engine("exec", running.container, "cat", "/proc/1/status")
    status = dict(line.split(":\t", 1) for line in inside.splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1000"] * 4
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    for place in ("/etc/planted", "/opt/preference/planted", "/models/planted"):
        refusal = running.engine("exec", "--user", "0", running.container, "touch", place, check=False)
        assert "Read-only file system" in refusal
    running.engine("exec", running.container, "touch", "/tmp/allowed")


def test_an_idle_server_stops_cleanly(running: Any) -> None:
    running.compose("stop")
    assert running.state["ExitCode"] == 0


def test_a_server_under_load_stops_within_its_grace(
    running: Any, many: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    client = score(tmp_path / "predictions.csv", many)
    try:
        time.sleep(2.0)
        assert client.poll() is None
        start = time.monotonic()
        running.compose("stop")
        record_property("exit code", running.state["ExitCode"])
        # Release 24.10 ends with 0, 1 or an abort while requests are under way, or hangs until the entrypoint ends it
        # with 1; the engine never has to kill it (137).
        assert running.state["ExitCode"] in (0, 1, 134)
        assert time.monotonic() - start < 40
    finally:
        client.kill()
        client.wait()


def test_a_killed_server_comes_back(running: Any, eventually: Callable[..., None], tmp_path: Path) -> None:
    (pid,) = processes(running, "tritonserver")
    running.engine("exec", running.container, "sh", "-c", f"kill -9 {pid}", check=False)
    container = running.container
    eventually(lambda: running.engine.inspect(container)["RestartCount"] == 1)
    eventually(lambda: running.state.get("Health", {}).get("Status") == "healthy")
    assert score(tmp_path / "predictions.csv").wait(120) == 0


def test_a_server_that_lost_a_model_serves_again_after_a_restart(running: Any, answers: Callable[[], bool]) -> None:
    assert answers()
    stubs = processes(running, "triton_python_backend_stub")
    running.engine("exec", running.container, "sh", "-c", f"kill -9 {' '.join(stubs)}")
    assert not answers()
    running.compose("kill")
    running.up()
    assert answers()


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may spoil."""
    tmp_path.chmod(0o755)
    return Path(shutil.copytree(repository, tmp_path / "repository"))


def _refused(stack: Any, repository: Path, eventually: Callable[..., None]) -> str:
    spoilt = stack.serving(repository)
    try:
        spoilt.compose("up", "--detach")
        container = spoilt.container
        eventually(lambda: spoilt.engine.inspect(container)["State"]["Status"] == "exited", 60.0)
        facts = spoilt.engine.inspect(container)
        assert facts["State"]["ExitCode"] == ENTRYPOINT_REFUSES
        assert facts["RestartCount"] == 5
        return str(spoilt.engine("logs", container))
    finally:
        spoilt.down()


def test_a_flipped_byte_is_refused_and_not_for_ever(stack: Any, copy: Path, eventually: Callable[..., None]) -> None:
    model = next(copy.rglob("model.onnx"))
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    said = _refused(stack, copy, eventually)
    assert f"{model.relative_to(copy)}` was changed" in said
    assert "Traceback" not in said


def test_an_unreadable_repository_is_refused(stack: Any, copy: Path, eventually: Callable[..., None]) -> None:
    (copy / "manifest.json").chmod(0)
    said = _refused(stack, copy, eventually)
    assert "manifest.json" in said
    assert "Traceback" not in said


def test_a_missing_repository_is_never_made(stack: Any, tmp_path: Path) -> None:
    missing = stack.serving(tmp_path / "missing")
    try:
        said = missing.compose("up", "--detach", check=False)
        assert "does not exist" in said
        assert not (tmp_path / "missing").exists()
    finally:
        missing.down()


def test_the_image_says_what_it_is_and_holds_no_secret(stack: Any) -> None:
    image = stack.engine.inspect(stack.variables["PREFERENCE_IMAGE"])
    assert image["Config"]["User"] == "1000:1000"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "preference-ensemble"
    assert not any(word in json.dumps(image["Config"]["Env"]) for word in ("TOKEN", "SECRET", "PASSWORD"))


def test_the_image_adds_little_to_its_base(
    stack: Any, base: dict[str, str], record_property: Callable[[str, object], None]
) -> None:
    if base["TRITON_IMAGE"] != "preference-standin":
        pytest.skip("a base that a build pulled has no name to the engine")
    built, beneath = (
        stack.engine.inspect(name)
        for name in (stack.variables["PREFERENCE_IMAGE"], f"{base['TRITON_IMAGE']}:{base['TRITON_TAG']}")
    )
    layers = len(built["RootFS"]["Layers"]) - len(beneath["RootFS"]["Layers"])
    megabytes = (built["Size"] - beneath["Size"]) / 1e6
    record_property("layers", layers)
    record_property("megabytes", megabytes)
    assert layers <= 4
    assert 0 < megabytes < 150
