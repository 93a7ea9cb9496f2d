"""The command `preference-serve`, run as people run it."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from configurations import classifier_member, configuration

from preference_core.artefacts.manifest import Manifest, write_manifest

pytestmark = pytest.mark.slow

CONFIG = configuration(classifier_member("doubled", template="gemma", max_tokens=64))
COMMAND = [sys.executable, "-c", "from preference_embedded.app import main; main()"]


@pytest.fixture
def folder(tmp_path: Path, write_model: Callable[..., Path], configs: Any, models: Any) -> Path:
    """A working directory with a configuration and the repository that belongs to it."""
    (tmp_path / "small.toml").write_text(CONFIG)
    repository = tmp_path / "build/small/repository"
    write_model(repository, "doubled", configs["doubled"], models["doubled"])
    write_manifest(repository, Manifest("repository", {}))
    return tmp_path


@contextmanager
def serve(folder: Path, *arguments: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([*COMMAND, *arguments], cwd=folder, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


def test_it_serves_until_sigterm_restarts_what_died_and_exits_with_0(folder: Path, connect: Any) -> None:
    with serve(folder, "small.toml", "--json", "--log-level", "info", *FREE_PORTS) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(process.stdout.readline())
        assert ready["models"] == ["doubled"]
        x = np.ones((1, 3), np.float32)
        assert connect(ready["grpc"]).ask("doubled", {"x": x}, ["y"])["y"].tolist() == [[2.0, 2.0, 2.0]]

        listed = subprocess.run(["pgrep", "-f", f"stub .*preference-{process.pid}-"], capture_output=True, text=True)
        os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)
        messages = []
        for message in process.stderr:
            messages.append(message)
            if "ready again" in message:
                break
        assert "ready again" in messages[-1], messages
        pattern = re.compile(r"of model instance `doubled_\d` died; restarting the server")
        assert any(map(pattern.search, messages)), messages
        assert connect(ready["grpc"]).ask("doubled", {"x": x}, ["y"])["y"].tolist() == [[2.0, 2.0, 2.0]]

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "CUDA" not in process.stderr.read()
    assert "CUDA" in (folder / "build/small/server.log").read_text()


@pytest.mark.parametrize("end", ["the signal", "its terminal is closed"])
def test_sighup_stops_it_as_sigterm_does(folder: Path, end: str) -> None:
    mine, terminal = pty.openpty()
    signals = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # A runner in the background has it ignored.
    )
    command = [COMMAND[0], "-c", f"{signals}; {COMMAND[2]}", "small.toml", "--json", *FREE_PORTS]
    with subprocess.Popen(
        command,
        cwd=folder,
        text=True,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["models"] == ["doubled"]
            started = psutil.Process(process.pid).children(recursive=True)
            assert len(started) >= 2
            os.close(terminal)
            if end == "the signal":
                process.send_signal(signal.SIGHUP)
            else:
                os.close(mine)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert list(Path("/dev/shm").glob(f"preference-{process.pid}-*")) == []


def test_a_sighup_that_was_ignored_from_the_start_stays_ignored(folder: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    run = ["--run", "--", sys.executable, "-c", "import time; print('running', flush=True); time.sleep(300)"]
    command = [COMMAND[0], "-c", f"{ignored}; {COMMAND[2]}", "small.toml", *run]
    with subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_with_run_it_gives_the_url_to_a_command_and_exits_with_its_status(folder: Path) -> None:
    code = "import os, sys; print(os.environ['PREFERENCE_URL'], *sys.argv[1:]); sys.exit(7)"
    with serve(folder, "small.toml", "--run", "--", sys.executable, "-c", code, "--url={url}") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 7
    url, argument = out.split()
    assert argument == f"--url={url}"
    assert f"grpc {url}" in err


def test_a_command_is_told_to_stop_when_the_server_is(folder: Path) -> None:
    code = "import time; print('running', flush=True); time.sleep(300)"
    began = time.monotonic()
    with serve(folder, "small.toml", "--run", "--", sys.executable, "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 200


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.toml"], 2, "error: There is no file `none.toml`"),
        (
            ["small.toml", "--repository", "elsewhere"],
            2,
            "error: There is no model repository `elsewhere`\nhint: Make it",
        ),
        (["small.toml", "--run"], 2, "error: `--run` and COMMAND belong together"),
        (["small.toml", "--python", "/no/python"], 1, "error: The server's Python `/no/python` does not run"),
        (["small.toml", "--address", "192.0.2.1"], 1, "warning: `192.0.2.1` is open to the network"),
        (["small.toml", "--run", "--", "no-such-command"], 2, "error: `no-such-command` is not a command"),
    ],
)
def test_a_mistake_is_one_error_without_a_traceback(
    folder: Path, arguments: list[str], code: int, message: str
) -> None:
    with serve(folder, *arguments) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert message in err
    assert "Traceback" not in err
    assert out == ""
