"""`preference-score` against a real gRPC server; as a process of its own where signals and pipes matter."""

import csv
import gzip
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest

from preference_client import progress
from preference_client.app import weights_of
from preference_core.errors import UserError

pytestmark = pytest.mark.slow

Run = Callable[..., Any]


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines(keepends=True)))


def test_a_file_is_scored_in_order_with_ids_kept(
    triton: Any, run: Run, battles_csv: Any, tmp_path: Path, expected: Any
) -> None:
    triton.before = lambda received, context: time.sleep(0.01 if int(received.id) % 5 == 0 else 0)
    output = tmp_path / "p.csv"
    result = run(battles_csv(200), "-o", output, "--url", triton.url)
    assert (result.exit_code, result.stdout) == (0, "")
    header, *rows = table(output)
    assert header[:5] == ["id", "winner_model_a", "winner_model_b", "winner_tie", "gemma_winner_model_a"]
    assert [row[0] for row in rows] == [f"id-{n}" for n in range(1, 201)]
    for n, row in enumerate(rows, start=1):
        np.testing.assert_array_equal(np.array(row[1:4], np.float32), expected(f"prompt {n}"))
        assert abs(sum(map(float, row[1:4])) - 1) <= 1e-6
    assert "200 rows scored" in result.stderr
    assert "0 failed" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["battles.csv", "p.csv"]


def test_requests_carry_the_trace_context_of_the_environment(
    triton: Any, run: Run, battles_csv: Any, tmp_path: Path
) -> None:
    seen = set()
    triton.before = lambda received, context: seen.add(dict(context.invocation_metadata()).get("traceparent"))
    arguments = (battles_csv(3), "-o", tmp_path / "p.csv", "--url", triton.url)
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    assert run(*arguments, TRACEPARENT=context).exit_code == 0
    assert seen == {context}
    refused = run(*arguments, "--no-resume", TRACEPARENT="some")
    assert refused.exit_code == 2
    assert "The trace context is `some`" in refused.stderr


def test_parquet_goes_out_and_the_symmetric_ensemble_is_asked(
    triton: Any, run: Run, battles_csv: Any, tmp_path: Path
) -> None:
    output = tmp_path / "p.parquet"
    arguments = ["--url", triton.url, "--symmetric", "--weights", "gemma=1,llama=3", "--max-in-flight", "3"]
    assert run(battles_csv(20), "-o", output, *arguments).exit_code == 0
    assert pq.read_table(output).column("id").to_pylist() == [f"id-{n}" for n in range(1, 21)]
    assert triton.last.model == "preference_ensemble_symmetric"
    assert triton.last.weights == (0.25, 0.75)


def test_which_ensemble_answered_stands_in_the_summary_and_in_a_parquet_file(
    triton: Any, run: Run, battles_csv: Any, tmp_path: Path
) -> None:
    triton.parameters |= {"ensemble": "demo", "content": "0123456789abcdef"}
    triton.version = "7"
    output = tmp_path / "p.parquet"
    result = run(battles_csv(20), "-o", output, "--url", triton.url, "--json")
    answered_by = "`preference_ensemble` of demo version 7 (content 0123456789ab)"
    assert f"answered by {answered_by}\n" in result.stderr
    said = {"name": "demo", "model": "preference_ensemble", "version": "7", "content": "0123456789abcdef"}
    assert json.loads(result.stdout)["ensemble"] == said
    assert pq.read_schema(output).metadata[b"answered_by"].decode() == answered_by


def test_standard_input_and_gzip_are_read(
    triton: Any, run: Run, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    source = battles_csv(10)
    output = tmp_path / "p.csv"
    process = command("-", "--format", "csv", "-o", output, "--url", triton.url, stdin=subprocess.PIPE)
    assert process.communicate(source.read_text(), timeout=30)[0] == ""
    assert process.returncode == 0
    from_pipe = output.read_text()
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    assert run(packed, "-o", output, "--url", triton.url).exit_code == 0
    assert output.read_text() == from_pipe
    assert len(table(output)) == 11


def test_kaggles_format_has_ids_and_labels(triton: Any, run: Run, battles_csv: Any, tmp_path: Path) -> None:
    output = tmp_path / "submission.csv"
    assert run(battles_csv(3), "-o", output, "--url", triton.url, "--submission").exit_code == 0
    header, *rows = table(output)
    assert header == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert [len(row) for row in rows] == [4, 4, 4]


def test_a_file_without_rows_gives_a_header(triton: Any, run: Run, battles_csv: Any, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    result = run(battles_csv(0), "-o", output, "--url", triton.url)
    assert result.exit_code == 0
    assert len(table(output)) == 1
    assert table(output)[0][0] == "id"


def test_a_missing_column_is_one_error_naming_it_and_those_found(triton: Any, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "b.csv"
    source.write_text("id,prompt,answer_a,response_b\n1,a,b,c\n")
    result = run(source, "-o", tmp_path / "p.csv", "--url", triton.url)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].endswith(
        "has no column `response_a`; found 'id', 'prompt', 'answer_a', 'response_b'"
    )
    assert "Traceback" not in result.stderr


def _poisoned(path: Path) -> Path:
    path.write_bytes(
        b"id,prompt,response_a,response_b\n"
        b"a,prompt 1,x,y\n"
        b"b,prompt \xff,x,y\n"
        b"c,prompt 3\n"
        b"d,poison,x,y\n"
        b"e,prompt 5,x,y\n"
    )
    return path


def _refuse_poison(received: Any, context: Any) -> None:
    if received.prompt[0] == "poison":
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "`prompt` is poison")


def test_failed_rows_are_listed_and_the_others_scored_in_order(
    triton: Any, run: Run, tmp_path: Path, expected: Any
) -> None:
    triton.before = _refuse_poison
    result = run(_poisoned(tmp_path / "b.csv"), "-o", tmp_path / "p.csv", "--url", triton.url)
    assert result.exit_code == 3
    rows = table(tmp_path / "p.csv")[1:]
    assert [row[0] for row in rows] == ["a", "e"]
    np.testing.assert_array_equal(np.array(rows[1][1:4], np.float32), expected("prompt 5"))
    failures = table(tmp_path / "p.errors.csv")
    assert [row[:2] for row in failures] == [["row", "id"], ["2", "b"], ["3", "c"], ["4", "d"]]
    assert "line 3: `prompt` is not UTF-8: it has a byte 0xff" in failures[1][2]
    assert "line 4: the row has 2 columns" in failures[2][2]
    assert "`prompt` is poison" in failures[3][2]
    assert "3 failed: see" in result.stderr


def test_unreadable_text_is_replaced_when_wished(triton: Any, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "b.csv"
    source.write_bytes(b"id,prompt,response_a,response_b\nb,prompt \xff,x,y\n")
    arguments = ["-o", tmp_path / "p.csv", "--url", triton.url, "--invalid-text", "replace", "--submission"]
    assert run(source, *arguments).exit_code == 0
    assert triton.last.prompt == ("prompt \ufffd",)


def test_a_submission_is_whole_or_not_written(triton: Any, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    output.write_text("older")
    result = run(_poisoned(tmp_path / "b.csv"), "-o", output, "--url", triton.url, "--submission")
    assert result.exit_code == 2
    assert "Row 2 (id `b`) failed, and a submission needs every row" in result.stderr
    assert "--invalid-text replace" in result.stderr
    assert output.read_text() == "older"
    assert not (tmp_path / "p.errors.csv").exists()


def test_a_submission_has_each_id_once(triton: Any, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "b.csv"
    source.write_text("id,prompt,response_a,response_b\nx,p,a,b\ny,p,a,b\nx,p,b,a\n")
    result = run(source, "-o", tmp_path / "p.csv", "--url", triton.url, "--submission")
    assert result.exit_code == 2
    assert "Row 3 (id `3`) failed, and a submission needs every row: the id `x` is repeated" in result.stderr
    assert not (tmp_path / "p.csv").exists()


def test_a_submission_needs_ids(triton: Any, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "b.csv"
    source.write_text("prompt,response_a,response_b\na,b,c\n")
    result = run(source, "-o", tmp_path / "p.csv", "--url", triton.url, "--submission")
    assert result.exit_code == 2
    assert "--id-column" in result.stderr


def test_no_server_is_one_error_at_once(triton: Any, run: Run, battles_csv: Any, tmp_path: Path) -> None:
    triton.stop()
    started = time.monotonic()
    result = run(battles_csv(5), "-o", tmp_path / "p.csv", PREFERENCE_URL=triton.url)
    assert time.monotonic() - started < 10
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert triton.url in error
    assert "make serve" in hint
    assert not (tmp_path / "p.csv").exists()


def test_a_server_that_goes_away_for_good_leaves_the_older_output_and_exit_code_one(
    triton: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    output = tmp_path / "p.csv"
    output.write_text("older")
    triton.before = lambda received, context: time.sleep(0.01)
    process = command(battles_csv(20_000), "-o", output, "--url", triton.url, "--deadline-s", 3)
    _wait_for(lambda: triton.received > 200)
    triton.stop()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "without an answer" in stderr
    assert re.search(r"Resumable: \d+ rows are kept; the same command goes on after them\.$", stderr)
    assert output.read_text() == "older"
    assert _left(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_it_promptly_and_leaves_the_older_output(
    triton: Any, command: Any, battles_csv: Any, tmp_path: Path, number: int, code: int
) -> None:
    output = tmp_path / "p.csv"
    output.write_text("older")
    release = threading.Event()
    triton.before = lambda received, context: release.wait(120) if int(received.id) > 1100 else None
    process = command(battles_csv(5000), "-o", output, "--url", triton.url)
    _wait_for(lambda: triton.received > 1100)
    started = time.monotonic()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - started < 10
    release.set()
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert output.read_text() == "older"
    assert _left(tmp_path) == []


def test_a_signal_stops_it_while_standard_input_says_nothing(triton: Any, command: Any, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    arguments = ["-", "--format", "csv", "-o", output, "--url", triton.url]
    process = command(*arguments, stdin=subprocess.PIPE)
    process.stdin.write("id,prompt,response_a,response_b\n1,a,b,c\n")
    process.stdin.flush()
    _wait_for(lambda: (tmp_path / ".p.csv.unfinished/rows").exists())
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr.splitlines()[-1].startswith(f"stopped: `{output}` is as it was before.")
    assert not output.exists()


def test_a_signal_stops_it_while_a_destructor_runs(triton: Any, command: Any, battles_csv: Any, tmp_path: Path) -> None:
    destructor = (
        "import os, signal\n"
        "class Ends:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "import preference_client.pipeline as pipeline\n"
        "settle = pipeline.Pipeline._settle\n"
        "def settle_and_drop(self, slot):\n"
        "    settle(self, slot)\n"
        "    if slot.number == 1000: Ends()\n"
        "pipeline.Pipeline._settle = settle_and_drop\n"
    )
    process = command(battles_csv(5000), "-o", tmp_path / "p.csv", "--url", triton.url, before=destructor)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert stderr.splitlines()[-1].startswith(f"stopped: `{tmp_path / 'p.csv'}` is as it was before.")
    assert _left(tmp_path) == []


def test_a_signal_while_finished_files_take_their_places_is_too_late(
    triton: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    output = tmp_path / "p.csv"
    output.write_text("older")
    late = (
        "import os, signal\n"
        "from preference_client.journal import Journal\n"
        "finish = Journal.finish\n"
        "def late(self):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)\n"
        "    finish(self)\n"
        "Journal.finish = late\n"
    )
    process = command(battles_csv(50), "-o", output, "--url", triton.url, before=late)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "50 rows scored" in stderr
    assert len(table(output)) == 51


def test_a_kill_leaves_the_older_output(triton: Any, command: Any, battles_csv: Any, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    output.write_text("older")
    process = command(battles_csv(20_000), "-o", output, "--url", triton.url)
    _wait_for(lambda: triton.received > 1100)
    process.kill()
    process.communicate(timeout=60)
    assert output.read_text() == "older"


def test_the_summary_is_json_on_standard_output_when_wished(triton: Any, run: Run, tmp_path: Path) -> None:
    triton.before = _refuse_poison
    triton.dropped = 3
    result = run(_poisoned(tmp_path / "b.csv"), "-o", tmp_path / "p.csv", "--url", triton.url, "--json")
    summary = json.loads(result.stdout)
    assert summary["output"] == str(tmp_path / "p.csv")
    assert summary["errors"] == str(tmp_path / "p.errors.csv")
    assert (summary["scored"], summary["failed"], summary["truncated"]) == (2, 3, 2)
    assert summary["rows_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--weights", "gemma=x"], "not a weight"),
        (["--weights", "gemma=1,lama=1"], "`lama`"),
        (["--timeout-s", "0"], "timeout_s"),
        (["--private-key", "key.pem"], "certificate chain"),
        (["--root-certificates", "nothing.pem"], "nothing.pem"),
        (["--unknown"], "--unknown"),
        (["--format", "xml"], "xml"),
    ],
)
def test_wrong_options_are_the_users_mistake(
    triton: Any, run: Run, battles_csv: Any, tmp_path: Path, arguments: list[str], named: str
) -> None:
    result = run(battles_csv(1), "-o", tmp_path / "p.csv", "--url", triton.url, *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr
    assert triton.received == 0


def test_weights_are_read_from_text() -> None:
    assert weights_of("gemma=0.4, llama=0.6") == {"gemma": 0.4, "llama": 0.6}
    with pytest.raises(UserError, match="gemma"):
        weights_of("gemma")


def test_its_help_lists_the_exit_codes(run: Run) -> None:
    text = run("--help").stdout
    assert "3 some rows failed" in " ".join(text.split())


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 60 s"
        time.sleep(0.01)


def _left(folder: Path) -> list[str]:
    """Files that a stopped run should not have left."""
    expected = ("battles.csv", "p.csv", ".p.csv.unfinished")
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)


@pytest.mark.parametrize(("seconds", "speed"), [(618.0, "0.45 rows/s"), (60.0, "4.7 rows/s"), (0.2, "1,395 rows/s")])
def test_slow_models_have_a_speed_too(monkeypatch: pytest.MonkeyPatch, seconds: float, speed: str) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    assert progress.Counts(scored=279, started_s=0.0).speed == speed
