"""A file scored while server and client are killed again and again is that of an undisturbed run, byte for byte.

`make test-soak` takes 100,000 battles (PREFERENCE_SOAK_BATTLES).
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from battle_files import TEXTS, write_battles
from served import serving

from preference_embedded.processes import stubs_of

pytestmark = pytest.mark.slow

BATTLES = int(os.environ.get("PREFERENCE_SOAK_BATTLES", "2000"))
#: Saves often enough to be killed at the right moments even where thousands of battles take seconds.
SCORE = """
import preference_client.journal as journal
journal.SAVE_INTERVAL_S = 0.1
from preference_client.app import main
main()
"""


def victim_of(kind, serve, client):
    """The process to kill: the (c)lient, the (s)erver, or that of a (m)odel; None while there is none."""
    server = serve.triton
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


def battles_of(demo):
    """As many battles as are wanted, each with a prompt of its own; cut short where there are so many."""
    turns, characters = (2, 40) if BATTLES > 10_000 else (None, None)
    rows = [[json.loads(row[name]) for name in TEXTS] for row in demo.rows("data/test.csv")]
    for number, row in enumerate(itertools.islice(itertools.cycle(rows), BATTLES)):
        prompt, *responses = ([turn and turn[:characters] for turn in texts[:turns]] for texts in row)
        yield number, *map(json.dumps, ([f"{number}.", *prompt[1:]], *responses))


def test_a_killed_launcher_leaves_nothing_within_seconds_whatever_is_under_way(demo, tmp_path, measured):
    with serving(tmp_path / "server.log") as serve:
        url = serve.urls["grpc"]
        client = score(demo.folder / "data/test.csv", tmp_path / "symmetric.csv", url, "--symmetric", "--deadline-s=1")
        while rows_kept(tmp_path / "symmetric.csv") < 20:
            assert client.poll() is None
            time.sleep(0.05)
        assert serve.traces()
        began = time.monotonic()
        serve.process.kill()
        while serve.traces():
            assert time.monotonic() - began < 10
            time.sleep(0.05)
        measured(f"launcher killed: nothing is left after {time.monotonic() - began:.1f} s")
        client.wait()
    assert client.returncode == 1
    assert "Resumable" in (tmp_path / "symmetric.stderr").read_text()


@pytest.mark.parametrize("kills", ["scscs", "mcm"])
def test_killed_servers_models_and_clients_leave_no_trace_in_the_output(demo, tmp_path, measured, kills):
    source, undisturbed, disturbed = (tmp_path / name for name in ("battles.csv", "undisturbed.csv", "disturbed.csv"))
    write_battles(source, battles_of(demo))
    with serving(tmp_path / "server.log") as serve:
        url = serve.urls["grpc"]
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
    killed = ", ".join(
        f"{name} {kills.count(name[0])} times" for name in ("server", "client", "model") if name[0] in kills
    )
    measured(f"{BATTLES:,} battles, killed {killed}: identical; {disturbed_s:.0f} s, undisturbed {undisturbed_s:.0f} s")
