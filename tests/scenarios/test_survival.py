"""A file scored while server and client are killed again and again is that of an undisturbed run, byte for byte.

`make test-soak` takes 100,000 battles (PREFERENCE_SOAK_BATTLES).
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from battle_files import write_battles

from preference_embedded.processes import stubs_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BATTLES = int(os.environ.get("PREFERENCE_SOAK_BATTLES", "2000"))
#: Saves often enough to be killed at the right moments even where thousands of battles take seconds.
SCORE = """
import preference_client.journal as journal
journal.SAVE_INTERVAL_S = 0.1
from preference_client.app import main
main()
"""


@contextmanager
def serving(log):
    """`preference-serve` on the demo: its process, and `host:port` of gRPC."""
    command = Path(os.environ["PREFERENCE_SERVER_PYTHON"]).with_name("preference-serve")
    line = [command, "configs/demo.toml", "--json"]
    line += ["--log-file", str(log), *(f"--{service}-port=0" for service in ("grpc", "http", "metrics"))]
    said = log.with_suffix(".stderr")
    with said.open("w") as file, subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=file) as serve:
        try:
            ready = serve.stdout.readline()
            assert ready, said.read_text()
            yield serve, json.loads(ready)["grpc"]
        finally:
            serve.terminate()
            serve.wait(60)


def triton_of(serve):
    """Process id of the tritonserver that `serve` runs now; None while it has none."""
    for children in Path(f"/proc/{serve.pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver":
                return pid
    return None


def victim_of(kind, serve, client):
    """The process to kill: the (c)lient, the (s)erver, or that of a (m)odel; None while there is none."""
    server = triton_of(serve)
    if server is None or kind == "c":
        return server and client.pid
    return server if kind == "s" else next((p for p, name in stubs_of(server).items() if "llama" in name), None)


def rows_kept(output):
    """Rows that the journal beside an unfinished output promises."""
    journal = output.with_name(f".{output.name}.unfinished") / "journal"
    marks = [json.loads(line) for line in journal.read_bytes().split(b"\n")[1:-1]] if journal.exists() else []
    return marks[-1]["scored"] + marks[-1]["failed"] if marks else 0


def score(source, output, url, *options):
    with output.with_suffix(".stderr").open("w") as said:
        line = [sys.executable, "-c", SCORE, source, "-o", output, "--url", url, *options]
        return subprocess.Popen(line, stderr=said)


def traces_of(pid):
    """Processes, shared memory and folders of the server that process `pid` started."""
    name = f"preference-{pid}-"
    listed = subprocess.run(["ps", "-eo", "args", "-ww"], capture_output=True, text=True, check=True).stdout
    found = [line for line in listed.splitlines() if name in line]
    return found + [path for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob(f"{name}*")]


def test_a_killed_launcher_leaves_nothing_within_seconds_whatever_is_under_way(demo, tmp_path):
    with serving(tmp_path / "server.log") as (serve, url):
        client = score(demo.folder / "data/test.csv", tmp_path / "symmetric.csv", url, "--symmetric", "--deadline-s=1")
        while rows_kept(tmp_path / "symmetric.csv") < 20:
            assert client.poll() is None
            time.sleep(0.05)
        assert traces_of(serve.pid)
        began = time.monotonic()
        serve.kill()
        while traces_of(serve.pid):
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        sys.stderr.write(f"nothing is left {time.monotonic() - began:.1f} s after the kill\n")
        client.wait()
    assert client.returncode == 1
    assert "Resumable" in (tmp_path / "symmetric.stderr").read_text()


@pytest.mark.parametrize("kills", ["scscs", "mcm"])
def test_killed_servers_models_and_clients_leave_no_trace_in_the_output(demo, tmp_path, kills):
    source, undisturbed, disturbed = (tmp_path / name for name in ("battles.csv", "undisturbed.csv", "disturbed.csv"))
    rows = itertools.islice(itertools.cycle(demo.rows("data/test.csv")), BATTLES)
    prompts = ((n, json.dumps([f"{n}.", *json.loads(row["prompt"])[1:]]), row) for n, row in enumerate(rows))
    write_battles(source, ((n, prompt, row["response_a"], row["response_b"]) for n, prompt, row in prompts))
    with serving(tmp_path / "server.log") as (serve, url):
        began = time.monotonic()
        client = score(source, undisturbed, url)
        assert client.wait() == 0, undisturbed.with_suffix(".stderr").read_text()
        undisturbed_s = time.monotonic() - began

        began = time.monotonic()
        client = score(source, disturbed, url)
        for number, kind in enumerate(kills):
            least = BATTLES * (0.1 + 0.8 * number / len(kills))
            while rows_kept(disturbed) < least or (victim := victim_of(kind, serve, client)) is None:
                assert client.poll() is None, "it was finished before it was killed often enough"
                time.sleep(0.05)
            os.kill(victim, signal.SIGKILL)
            if kind == "c":
                client.wait()
                client = score(source, disturbed, url)
        client.wait()
        disturbed_s = time.monotonic() - began
    stderr = disturbed.with_suffix(".stderr").read_text()
    assert client.returncode == 0, stderr
    assert "going on after" in stderr
    assert disturbed.read_bytes() == undisturbed.read_bytes()
    assert len(disturbed.read_bytes().splitlines()) == BATTLES + 1
    sys.stderr.write(
        f"{BATTLES:,} battles: undisturbed {undisturbed_s:.0f} s, with {len(kills)} kills {disturbed_s:.0f} s\n"
    )
