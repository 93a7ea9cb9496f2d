"""A folder of shards through a real Ray and a real server, with workers killed on the way: `make test-ray`."""

import csv
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from demo_files import BATTLES, PREDICTIONS, ROOT, demo_repository

from preference_embedded import ports
from preference_embedded.launcher import Options, TritonServer

PROGRAMS = "PREFERENCE_RAY_PROGRAMS"
SHARDS = 20
#: The long form of `make test-ray` has 10,000.
ROWS = int(os.environ.get("PREFERENCE_SHARD_ROWS", "150"))
pytestmark = pytest.mark.skipif(PROGRAMS not in os.environ, reason="`make test-ray` runs the tests that need Ray")


def program(name: str) -> str:
    """A command of the environment that has `preference-client[ray]` and nothing else."""
    return f"{os.environ[PROGRAMS]}/{name}"


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """The demo's ensemble."""
    python = Path(os.environ.get("PREFERENCE_SERVER_PYTHON") or ROOT / ".venv-server/bin/python")
    with TritonServer(Options(demo_repository(), python=python)) as server:
        yield server


@pytest.fixture(scope="module")
def ray() -> Iterator[str]:
    """Address of a Ray of one node with two processors."""
    port = ports.resolve("127.0.0.1", {"ray": 0})["ray"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    # A short path: Ray's sockets below it have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        line = [program("ray"), "start", "--head", "--port", str(port), "--num-cpus", "2", "--temp-dir", folder]
        line += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false", "--disable-usage-stats"]
        started = subprocess.run(
            [*line, "--object-store-memory", "80000000"], env=environment, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"127.0.0.1:{port}"
        subprocess.run([program("ray"), "stop", "--force"], env=environment, capture_output=True, check=False)


@pytest.fixture(scope="module")
def demo_rows() -> tuple[list[str], list[list[str]], list[list[str]]]:
    """The header and rows of the demo's test file, and its predictions."""
    with BATTLES.open(newline="") as file:
        header, *battles = csv.reader(file)
    with PREDICTIONS.open(newline="") as file:
        _, *predictions = csv.reader(file)
    return header, battles, predictions


@pytest.fixture
def shards(tmp_path: Path, demo_rows: tuple[list[str], list[list[str]], list[list[str]]]) -> Path:
    """A folder of shards, the demo's battles over and over; every other one is Parquet."""
    header, battles, _ = demo_rows
    folder = tmp_path / "battles"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for number in range(SHARDS):
        path = folder / f"part-{number:03}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            for row in range(number * ROWS, (number + 1) * ROWS):
                writer.writerow([str(row), *battles[row % len(battles)][1:]])
        if number % 2:
            options = pyarrow.csv.ParseOptions(newlines_in_values=True)
            pyarrow.parquet.write_table(pyarrow.csv.read_csv(path, parse_options=options), path.with_suffix(".parquet"))
            path.unlink()
    return folder


@pytest.fixture
def start(shards: Path, tmp_path: Path, ray: str, server: TritonServer) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts the command on the folder."""

    def run(*options: str) -> "subprocess.Popen[str]":
        line = [program("preference-score-shards"), str(shards), "-o", str(tmp_path / "predictions"), "--ray", ray]
        line += ["--url", server.urls["grpc"], *options]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def scores_of(path: Path) -> tuple[list[str], list[list[float]]]:
    """Ids and scores of one shard."""
    if path.suffix == ".parquet":
        rows = [list(row.values()) for row in pyarrow.parquet.read_table(path).to_pylist()]
    else:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
    return [str(row[0]) for row in rows], [[float(value) for value in row[1:4]] for row in rows]


def workers() -> list[int]:
    """Process ids of workers that score a shard."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(b"ray::score_shard"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_every_row_of_every_shard_is_scored_once_though_workers_are_killed(
    start: Callable[..., "subprocess.Popen[str]"],
    tmp_path: Path,
    demo_rows: tuple[list[str], list[list[str]], list[list[str]]],
) -> None:
    command = start()
    killed = 0
    deadline = time.monotonic() + 120
    while killed < 2:
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(1.0)
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    said, errors = command.communicate(timeout=3600)
    assert command.returncode == 0, said + errors
    assert said.count(" rows scored, 0 failed\n") == SHARDS, said
    _, _, predictions = demo_rows
    for number in range(SHARDS):
        (path,) = (tmp_path / "predictions").glob(f"part-{number:03}.*")
        ids, scores = scores_of(path)
        rows = range(number * ROWS, (number + 1) * ROWS)
        assert ids == [str(row) for row in rows]
        expected = [[float(value) for value in predictions[row % len(predictions)][1:4]] for row in rows]
        assert np.array(scores) == pytest.approx(np.array(expected), abs=1e-6)
    again = start()
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0
    assert said.count("up to date") == SHARDS


def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_scored(
    start: Callable[..., "subprocess.Popen[str]"], shards: Path, tmp_path: Path
) -> None:
    for path in sorted(shards.iterdir())[3:]:
        path.unlink()
    (shards / "part-999.csv").write_text("id,prompt\n1,x\n")
    command = start()
    said, errors = command.communicate(timeout=600)
    assert command.returncode == 1
    assert "part-999.csv: " in said
    assert "response_a" in said
    assert said.count("0 failed") == 2
    assert "1 of 3 shards are not finished" in errors


def test_an_unknown_option_and_a_missing_ray_are_one_clear_error_each(
    start: Callable[..., "subprocess.Popen[str]"], shards: Path
) -> None:
    for path in sorted(shards.iterdir())[2:]:
        path.unlink()
    misspelt = start("--symetric")
    _, errors = misspelt.communicate(timeout=600)
    assert misspelt.returncode == 2
    assert "No such option: --symetric" in errors
    assert "Traceback" not in errors
    _, errors = start("--ray", "127.0.0.1:1").communicate(timeout=600)
    assert "No Ray answers at `127.0.0.1:1`" in errors
    assert "hint: Start one" in errors
