"""Two real servers of one repository: used in turn, and a file is whole when one of them is killed meanwhile."""

import asyncio
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from battle_files import TEXTS, write_battles

from preference_client import AsyncScorer, Scorer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ODD_FOLDER = "with space (é)"


@pytest.fixture
def served(demo, tmp_path):
    """Starts `preference-serve` on the demo's repository, or on a copy of it: its process, and what it says."""
    started = []

    def serve(*options):
        command = Path(os.environ["PREFERENCE_SERVER_PYTHON"]).with_name("preference-serve")
        ports = [f"--{service}-port=0" for service in ("grpc", "http", "metrics")]
        line = [command, "configs/demo.toml", "--json", f"--log-file={tmp_path}/{len(started)}.log", *ports, *options]
        started.append(subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1], json.loads(started[-1].stdout.readline())

    yield serve
    for process in started:
        with process:
            process.kill()


def test_a_server_that_is_killed_while_a_file_is_scored_costs_no_row(demo, served, tmp_path):
    shutil.copytree(ROOT / demo.config.folders.repository, tmp_path / ODD_FOLDER)
    (one, first), (_, other) = served(), served(f"--repository={tmp_path / ODD_FOLDER}")
    assert first["release"] == other["release"]
    assert first["release"].startswith("demo version ")
    source, rows = tmp_path / "battles.csv", demo.rows("data/test.csv")
    write_battles(source, ([n, *(rows[n % len(rows)][field] for field in TEXTS)] for n in range(3000)))
    urls = ["--url", first["grpc"], "--url", other["grpc"]]

    def score(output, *arguments):
        line = [sys.executable, "-c", "from preference_client.app import main; main()", source, "-o", tmp_path / output]
        return subprocess.Popen([*line, *arguments], stderr=subprocess.PIPE, text=True)

    with score("one.csv", "--url", other["grpc"]) as undisturbed:
        undisturbed.wait(300)
    with score("both.csv", *urls) as run:
        unfinished = tmp_path / ".both.csv.unfinished" / "rows"
        while not (unfinished.exists() and unfinished.read_bytes().count(b"\n") > 100) and run.poll() is None:
            pass
        one.send_signal(signal.SIGKILL)
        _, stderr = run.communicate(timeout=300)
    assert run.returncode == 0, stderr
    assert "answered by `preference_ensemble` of demo" in stderr
    assert (tmp_path / "both.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    with (tmp_path / "both.csv").open() as file:
        assert sum(1 for _ in csv.reader(file)) == 3001


def test_asyncio_and_forked_processes_get_the_same_scores(served, battles):
    _, server = served()

    async def scored():
        async with AsyncScorer(server["grpc"]) as scorer:
            return [outcome.probabilities async for outcome in scorer.score_many(battles[:50])]

    with Scorer(server["grpc"]) as scorer:
        expected = np.stack([outcome.probabilities for outcome in scorer.score_many(battles[:50])])
        np.testing.assert_array_equal(np.stack(asyncio.run(scored())), expected)
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()

        def child():
            answers.put([outcome.probabilities for outcome in scorer.score_many(battles[:50])])

        process = context.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        np.testing.assert_array_equal(np.stack(answers.get()), expected)
        np.testing.assert_array_equal(scorer.score(battles[0]).probabilities, expected[0])
