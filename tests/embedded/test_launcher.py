"""Starting and ending the server: what it refuses, what it leaves behind, what happens when something dies."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preference_core.artefacts.manifest import Manifest, write_manifest
from preference_core.errors import ArtefactError, ServerError
from preference_embedded import processes
from preference_embedded.launcher import Options, TritonServer

pytestmark = pytest.mark.slow

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def traces(processes_naming: Callable[[str], list[str]]) -> Callable[..., list[str]]:
    """Shared memory, files and processes of servers that a process, by default this one, has started."""

    def find(pid: int = os.getpid()) -> list[str]:
        prefix = f"preference-{pid}-"
        folders = (SHARED_MEMORY, Path(tempfile.gettempdir()))
        return [str(path) for folder in folders for path in folder.glob(f"{prefix}*")] + processes_naming(prefix)

    return find


def test_a_clean_stop_leaves_no_process_no_shared_memory_and_no_file(
    repository: Path, traces: Callable[..., list[str]]
) -> None:
    before = traces()
    with TritonServer(Options(repository, verify=False)) as server:
        assert len(traces()) - len(before) >= 5, "a server, and a stub and a region for each of two models"
        log = server.log_file
        assert log.exists()
    assert set(traces()) <= set(before)
    assert not log.exists()
    server.stop()


def test_metrics_with_latency_summaries_are_served_on_loopback(server: TritonServer, client: Any) -> None:
    client.ask("doubled", {"x": np.zeros((1, 3), np.float32)}, ["y"])
    with urllib.request.urlopen(f"http://{server.urls['metrics']}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'nv_inference_request_summary_us_count{model="doubled"' in text
    assert server.urls["metrics"].startswith("127.0.0.1:")


def test_clients_cannot_reach_shared_memory_traces_or_log_settings(client: Any) -> None:
    connection = client.connection
    for call in (
        connection.get_system_shared_memory_status,
        connection.get_trace_settings,
        connection.get_log_settings,
    ):
        with pytest.raises(Exception, match="This protocol is restricted"):
            call()


def test_a_busy_port_is_named_with_its_holder(server: TritonServer, repository: Path) -> None:
    port = int(server.urls["grpc"].rsplit(":", 1)[1])
    with pytest.raises(
        ServerError, match=rf"Port {port} for grpc is in use by `tritonserver` \(process {server.pid}\)"
    ):
        TritonServer(Options(repository, verify=False, grpc_port=port)).start()


def test_too_little_shared_memory_is_refused_before_anything_starts(repository: Path) -> None:
    free_mib = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize // 2**20
    options = Options(repository, verify=False, shared_memory_mib_per_instance=free_mib)
    with pytest.raises(ServerError, match=r"`/dev/shm` has \d+ MiB free, the models of this repository need \d+ MiB"):
        TritonServer(options).start()


def test_a_missing_or_empty_repository_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="There is no model repository") as caught:
        TritonServer(Options(tmp_path / "none")).start()
    assert "preference-export all" in str(caught.value.hint)
    with pytest.raises(ArtefactError, match="holds no model"):
        TritonServer(Options(tmp_path)).start()


def test_a_changed_file_is_refused_by_name_before_serving(
    tmp_path: Path, write_model: Callable[..., Path], configs: Any, models: Any
) -> None:
    version = write_model(tmp_path, "doubled", configs["doubled"], models["doubled"])
    with pytest.raises(ArtefactError, match=r"has no manifest\.json"):
        TritonServer(Options(tmp_path)).start()
    write_manifest(tmp_path, Manifest("repository", {}))
    with TritonServer(Options(tmp_path, stop_timeout_s=0.1)):
        pass
    content = bytearray((version / "model.onnx").read_bytes())
    content[10] ^= 1
    (version / "model.onnx").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"doubled/1/model.onnx` was changed"):
        TritonServer(Options(tmp_path)).start()


def test_a_server_that_is_not_ready_in_time_is_ended(
    tmp_path: Path,
    write_model: Callable[..., Path],
    processes_naming: Callable[[str], list[str]],
    wait_until: Callable[..., bool],
) -> None:
    code = "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(60)\n"
    config = 'backend: "python" input [{name: "x" data_type: TYPE_INT32 dims: [1]}] '
    config += 'output [{name: "y" data_type: TYPE_INT32 dims: [1]}]'
    write_model(tmp_path / "repository", "slow", config, code)
    options = Options(tmp_path / "repository", verify=False, start_timeout_s=1.5, stop_timeout_s=0.5)
    with pytest.raises(ServerError, match=r"The server was not ready after 1.5 s"):
        TritonServer(options).start()
    assert wait_until(lambda: processes_naming(str(tmp_path / "repository")) == [])


CRASHES_AT_FIRST = """
import os, signal, sys
from pathlib import Path

class TritonPythonModel:
    def initialize(self, args):
        starts = Path(__file__).with_name("starts")
        starts.open("a").write(".")
        if starts.stat().st_size <= {crashes}:
            print("terminate called after throwing an instance of 'lock_exception'", file=sys.stderr, flush=True)
            os.kill({victim}, signal.SIGABRT)

    def execute(self, requests):
        return []
"""


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        ("os.getppid()", "terminate called after throwing an instance of 'lock_exception'"),
        ("os.getpid()", "Model `crashing`: Stub process 'crashing_0' is not healthy."),
    ],
    ids=["server", "stub"],
)
@pytest.mark.parametrize("crashes", [1, 3])
def test_a_server_that_crashes_while_it_starts_is_started_again_twice_with_the_reason_in_one_line(
    tmp_path: Path,
    write_model: Callable[..., Path],
    traces: Callable[..., list[str]],
    crashes: int,
    victim: str,
    reason: str,
) -> None:
    config = 'backend: "python" input [{name: "x" data_type: TYPE_INT32 dims: [1]}] '
    config += 'output [{name: "y" data_type: TYPE_INT32 dims: [1]}]'
    version = write_model(tmp_path, "crashing", config, CRASHES_AT_FIRST.format(crashes=crashes, victim=victim))
    before, said = traces(), list[str]()
    server = TritonServer(Options(tmp_path, verify=False, stop_timeout_s=0.1, say=said.append))
    reason = f"The server did not start: {reason}"
    if crashes == 1:
        with server:
            assert server.lost() is None
        assert said == [f"warning: {reason}; starting it again"]
    else:
        with pytest.raises(ServerError, match=re.escape(reason)):
            server.start()
        assert said == [f"warning: {reason}; starting it again"] * 2
    assert len((version / "starts").read_bytes()) == min(crashes + 1, 3)
    assert set(traces()) <= set(before)


def test_an_unknown_tritonserver_option_is_the_error_that_is_shown(repository: Path) -> None:
    with pytest.raises(ServerError, match="unrecognized option '--no-such-option"):
        TritonServer(Options(repository, verify=False, extra_arguments=("--no-such-option=1",))).start()


def test_the_death_of_a_model_process_is_noticed_and_a_restart_serves_again(
    repository: Path, hasty: Callable[..., Options], connect: Callable[[str], Any], wait_until: Callable[..., bool]
) -> None:
    with TritonServer(hasty(repository)) as server:
        url = server.urls["grpc"]
        assert server.lost() is None
        stubs = processes.stubs_of(server.pid)
        victim = next(pid for pid, instance in stubs.items() if instance == "sums_0_0")
        os.kill(victim, signal.SIGKILL)
        assert wait_until(lambda: server.lost() is not None)
        assert server.lost() == f"process {victim} of model instance `sums_0_0` died"
        server.restart()
        assert server.urls["grpc"] == url
        assert server.lost() is None
        answer = connect(url).ask("sums", {"ids": np.array([[1, 2]], np.int32)}, ["sums"])
        assert answer["sums"].tolist() == [[3.0, 2.0]]


def test_a_killed_server_leaves_nothing_once_it_is_stopped(
    repository: Path, hasty: Callable[..., Options], traces: Callable[..., list[str]], wait_until: Callable[..., bool]
) -> None:
    before = traces()
    with TritonServer(hasty(repository)) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: server.lost() is not None)
        assert server.lost() == "tritonserver ended with status -9"
    assert wait_until(lambda: set(traces()) <= set(before)), set(traces()) - set(before)


@pytest.mark.parametrize("private", [False, True])
def test_the_server_ends_at_once_and_without_a_trace_when_its_parent_is_killed(
    repository: Path, traces: Callable[..., list[str]], wait_until: Callable[..., bool], private: bool
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from preference_embedded.launcher import Options, TritonServer\n"
        f"server = TritonServer(Options(Path(sys.argv[1]), verify=False, private={private}))\n"
        "server.start()\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(repository)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert traces(parent.pid)
        parent.kill()
    assert wait_until(lambda: traces(parent.pid) == [], timeout_s=10)
    assert list(Path(tempfile.gettempdir()).glob(f"preference-{parent.pid}-*")) == []


def test_a_private_server_has_no_port_and_lets_nobody_else_in(
    repository: Path, hasty: Callable[..., Options], connect: Callable[[str], Any]
) -> None:
    with TritonServer(hasty(repository, private=True)) as server:
        folder = Path(server.urls["grpc"].removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        inodes = {os.readlink(link) for link in Path(f"/proc/{server.pid}/fd").iterdir()}
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert not [fields for fields in listening if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes]
        answer = connect(server.urls["grpc"]).ask("sums", {"ids": np.array([[1, 2]], np.int32)}, ["sums"])
        assert answer["sums"].tolist() == [[3.0, 2.0]]
    assert not folder.exists()


@pytest.mark.parametrize("name", ["with space", "par(en)", "é", "q'uo\"te", "dol$lar; echo &", "new\nline"])
def test_a_repository_below_any_path_is_served(
    models: Any, configs: Any, write_model: Any, hasty: Any, connect: Any, tmp_path: Path, name: str
) -> None:
    repository = tmp_path / name / "repository"
    write_model(repository, "doubled", configs["doubled"], models["doubled"])
    with TritonServer(hasty(repository, start_timeout_s=30)) as server:
        answer = connect(server.urls["grpc"]).ask("doubled", {"x": np.ones((1, 3), np.float32)}, ["y"])
    assert answer["y"].tolist() == [[2, 2, 2]]


def test_a_folder_for_temporary_files_that_a_shell_splits_is_refused_at_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a b"))
    with pytest.raises(ServerError, match="characters that a shell reads otherwise") as caught:
        TritonServer(Options(repository, verify=False)).start()
    assert "TMPDIR" in str(caught.value.hint)
