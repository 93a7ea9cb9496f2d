"""A run that was stopped, however, goes on with the same command: the output is that of a run that never was."""

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
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

ROWS = 2000
SAVED_OFTEN = "import preference_client.journal as journal; journal.SAVE_INTERVAL_S = 0.05"


@pytest.fixture(autouse=True)
def quick_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preference_client.journal.SAVE_INTERVAL_S", 0.05)


@pytest.fixture
def stop_at(triton: Any, command: Any) -> Callable[..., tuple[int, str]]:
    """Runs the command until the server was sent so many rows, ends it by a signal; its exit code and stderr."""

    def stop(rows: int, number: int, *arguments: object, **options: Any) -> tuple[int, str]:
        reached, release = threading.Event(), threading.Event()
        before = triton.before

        def hold(received: Any, context: Any) -> None:
            if int(received.id) > rows:
                reached.set()
                release.wait(30)
            before(received, context)

        triton.before = hold
        process = command(*arguments, "--max-in-flight", 30, "--url", triton.url, before=SAVED_OFTEN, **options)
        try:
            assert reached.wait(60), process.communicate(timeout=1)
            time.sleep(0.3)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            triton.before = before
            release.set()
        return process.returncode, stderr

    return stop


def written_as(source: Path, suffix: str) -> Path:
    """The same battles in another format."""
    path = source.with_name(f"battles{suffix}")
    rows = pyarrow.csv.read_csv(source)
    if suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=500)
    elif suffix == ".tsv":
        path.write_text(
            source.read_text().replace(',"[', '\t"[').replace("id,prompt,response_a,", "id\tprompt\tresponse_a\t")
        )
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows.to_pylist()).encode()))
    elif suffix == ".csv.gz":
        path.write_bytes(gzip.compress(source.read_bytes()))
    return path


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_killed_and_run_again_the_output_is_that_of_an_undisturbed_run(
    triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path, share: float, suffix: str
) -> None:
    source, output, undisturbed = battles_csv(ROWS), tmp_path / f"p{suffix}", tmp_path / f"q{suffix}"
    output.write_text("older")
    assert stop_at(int(ROWS * share), signal.SIGKILL, source, "-o", output)[0] == -signal.SIGKILL
    assert output.read_text() == "older"
    before = triton.received
    result = run(source, "-o", output, "--url", triton.url)
    assert result.exit_code == 0, result.stderr
    assert "going on after" in result.stderr
    assert f"{ROWS:,} rows scored" in result.stderr
    assert triton.received - before < ROWS * (1 - share) + 1100
    assert run(source, "-o", undisturbed, "--url", triton.url).exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".tsv", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_every_format_of_input_goes_on_where_it_was(
    triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path, suffix: str
) -> None:
    source, output, undisturbed = written_as(battles_csv(1500), suffix), tmp_path / "p.csv", tmp_path / "q.csv"
    stop_at(700, signal.SIGKILL, source, "-o", output, "--submission")
    result = run(source, "-o", output, "--url", triton.url, "--submission", "--json")
    assert json.loads(result.stdout)["resumed"] > 300
    assert run(source, "-o", undisturbed, "--url", triton.url, "--submission").exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()


def test_killed_again_and_again_no_row_is_lost_or_twice_and_failures_are_kept(
    triton: Any, run: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    def before(received: Any, context: Any) -> None:
        if int(received.id) % 100 == 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "`prompt` is poison")
        time.sleep(0.02)

    triton.before = before
    source, output, undisturbed = battles_csv(ROWS), tmp_path / "p.csv", tmp_path / "q.csv"
    kills = 0
    for pause_s in (1.2, 1.5, 1.8, 1.4):
        process = command(source, "-o", output, "--url", triton.url, before=SAVED_OFTEN)
        time.sleep(pause_s)
        kills += process.poll() is None
        process.kill()
        process.communicate(timeout=60)
    assert kills >= 2
    assert run(source, "-o", output, "--url", triton.url).exit_code in (0, 3)
    assert run(source, "-o", undisturbed, "--url", triton.url).exit_code == 3
    assert output.read_bytes() == undisturbed.read_bytes()
    assert (tmp_path / "p.errors.csv").read_bytes() == (tmp_path / "q.errors.csv").read_bytes()
    assert len((tmp_path / "p.errors.csv").read_text().splitlines()) == 1 + ROWS // 100


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_rows_scored_before_a_signal_are_kept(
    triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path, number: int, code: int
) -> None:
    source, output = battles_csv(ROWS), tmp_path / "p.csv"
    status, stderr = stop_at(1000, number, source, "-o", output)
    assert status == code
    kept = "Resumable: 1,000 rows are kept; the same command goes on after them."
    assert stderr.splitlines()[-1] == f"stopped: `{output}` is as it was before. {kept}"
    result = run(source, "-o", output, "--url", triton.url, "--json")
    assert json.loads(result.stdout)["resumed"] == 1000
    assert len(output.read_text().splitlines()) == 1 + ROWS


def test_a_signal_that_was_ignored_from_the_start_stays_ignored(
    triton: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    triton.before = lambda received, context: time.sleep(0.02)
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = command(battles_csv(3000), "-o", tmp_path / "p.csv", "--url", triton.url, before=ignored)
    while triton.received < 100:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_what_changed_is_named_and_nothing_goes_on(
    triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path
) -> None:
    source, output = battles_csv(1000), tmp_path / "p.csv"
    stop_at(500, signal.SIGTERM, source, "-o", output)
    content = source.read_text()

    def refusal(*arguments: object) -> str:
        result = run(source, "-o", output, "--url", triton.url, *arguments)
        assert result.exit_code == 2, result.stderr
        error, hint = result.stderr.splitlines()
        assert "--no-resume" in hint
        return error

    source.write_text(content.replace("prompt 500", "prompt 501"))
    assert "The first 500 rows of the input are not those that were scored" in refusal()
    source.write_text(content)
    assert "--weights was None, is 'gemma=1,llama=1'" in refusal("--weights", "gemma=1,llama=1")
    assert "--submission was False, is True" in refusal("--submission")
    assert "the server's model was 'preference_ensemble', is 'preference_ensemble_symmetric'" in refusal("--symmetric")
    triton.version = "2"
    assert "the server's version was '1', is '2'" in refusal()
    triton.version = "1"
    triton.parameters["content"] = "abc"
    assert "the server's content was '', is 'abc'" in refusal()
    del triton.parameters["content"]
    assert run(source, "-o", output, "--url", triton.url).exit_code == 0


def test_a_row_that_is_mended_behind_those_that_were_scored_costs_none_of_them(
    triton: Any, run: Any, battles_csv: Any, tmp_path: Path
) -> None:
    source, output, undisturbed = battles_csv(1000), tmp_path / "p.csv", tmp_path / "q.csv"
    good = source.read_text()
    for damaged, reason in (
        (good.replace("prompt 800", "prompt \0"), "and a submission needs every row"),
        (good.replace('"[""prompt 900""]",', ""), "line 901: "),
    ):
        source.write_text(damaged)
        result = run(source, "-o", output, "--url", triton.url, "--submission")
        assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
        assert re.search(r"Resumable: [789]\d\d rows are kept", result.stderr), result.stderr
    source.write_text(good)
    sent = triton.received
    result = run(source, "-o", output, "--url", triton.url, "--submission", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["resumed"] == 899
    assert triton.received - sent == 101
    assert run(source, "-o", undisturbed, "--url", triton.url, "--submission").exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()


def test_rows_that_were_added_to_a_complete_run_are_not_forgotten(
    triton: Any, run: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    source, output = battles_csv(50), tmp_path / "p.csv"
    dies = "import os\nos.replace = lambda *paths: os._exit(9)"
    command(source, "-o", output, "--url", triton.url, before=dies).communicate(timeout=60)
    with source.open("a") as file:
        file.write("more,a,b,c\n")
    result = run(source, "-o", output, "--url", triton.url)
    assert (result.exit_code, "more rows than the 50 that were scored" in result.stderr) == (2, True), result.stderr
    result = run(source, "-o", output, "--url", triton.url, "--no-resume")
    assert (result.exit_code, len(output.read_text().splitlines())) == (0, 52)


def test_no_resume_starts_again(triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path) -> None:
    source, output = battles_csv(1000), tmp_path / "p.csv"
    stop_at(500, signal.SIGTERM, source, "-o", output)
    result = run(source, "-o", output, "--url", triton.url, "--no-resume", "--weights", "gemma=1,llama=1", "--json")
    assert json.loads(result.stdout)["resumed"] == 0
    assert len(output.read_text().splitlines()) == 1001


def test_standard_input_goes_on_if_the_same_rows_come_again(
    triton: Any, command: Any, stop_at: Any, battles_csv: Any, tmp_path: Path
) -> None:
    source, output = battles_csv(1000), tmp_path / "p.csv"
    arguments = ["-", "--format", "csv", "-o", output]
    with source.open() as file:
        stop_at(500, signal.SIGTERM, *arguments, stdin=file)

    def again(text: str) -> tuple[int, str]:
        process = command(*arguments, "--url", triton.url, stdin=subprocess.PIPE)
        _, stderr = process.communicate(text, timeout=60)
        return process.returncode, stderr

    code, stderr = again(source.read_text().replace("prompt 7", "prompt 8"))
    assert code == 2
    assert "The first 500 rows of the input are not those that were scored" in stderr
    code, stderr = again(source.read_text())
    assert (code, "going on after 500 rows" in stderr) == (0, True)
    assert len(output.read_text().splitlines()) == 1001


@pytest.mark.parametrize("torn", ["journal", "rows"])
def test_what_was_only_half_written_is_dropped(
    triton: Any, run: Any, stop_at: Any, battles_csv: Any, tmp_path: Path, torn: str
) -> None:
    source, output, undisturbed = battles_csv(1000), tmp_path / "p.csv", tmp_path / "q.csv"
    stop_at(500, signal.SIGKILL, source, "-o", output)
    with (tmp_path / ".p.csv.unfinished" / torn).open("ab") as file:
        file.write(b'{"scored": 900, "fai')
    assert run(source, "-o", output, "--url", triton.url).exit_code == 0
    assert run(source, "-o", undisturbed, "--url", triton.url).exit_code == 0
    assert output.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_run_killed_while_its_files_take_their_places_is_finished_by_the_next(
    triton: Any, run: Any, command: Any, battles_csv: Any, tmp_path: Path, suffix: str, call: int
) -> None:
    triton.before = lambda received, context: (
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no") if received.id == "7" else None
    )
    source, output, undisturbed = battles_csv(50), tmp_path / f"p{suffix}", tmp_path / f"q{suffix}"
    dies = (
        "import os\nreplace, calls = os.replace, []\n"
        "def dies(*paths):\n"
        "    calls.append(paths)\n"
        f"    os._exit(9) if len(calls) == {call} else replace(*paths)\n"
        "os.replace = dies\n"
    )
    process = command(source, "-o", output, "--url", triton.url, before=dies)
    process.communicate(timeout=60)
    assert process.returncode == 9
    sent = triton.received
    result = run(source, "-o", output, "--url", triton.url)
    assert result.exit_code == 3
    assert triton.received == sent
    assert run(source, "-o", undisturbed, "--url", triton.url).exit_code == 3
    assert output.read_bytes() == undisturbed.read_bytes()
    assert (tmp_path / "p.errors.csv").read_bytes() == (tmp_path / "q.errors.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_two_runs_cannot_write_the_same_output(
    triton: Any, run: Any, stop_at: Any, command: Any, battles_csv: Any, tmp_path: Path
) -> None:
    release = threading.Event()
    triton.before = lambda received, context: release.wait(30)
    source, output = battles_csv(10), tmp_path / "p.csv"
    first = command(source, "-o", output, "--url", triton.url)
    while not triton.received:
        time.sleep(0.01)
    result = run(source, "-o", output, "--url", triton.url)
    release.set()
    assert (result.exit_code, "Another run is writing" in result.stderr) == (2, True)
    first.communicate(timeout=60)
    assert first.returncode == 0


def test_a_server_that_gets_another_version_meanwhile_ends_the_run(
    triton: Any, run: Any, battles_csv: Any, tmp_path: Path
) -> None:
    def before(received: Any, context: Any) -> None:
        if received.id == "500":
            triton.version = "2"

    triton.before = before
    result = run(battles_csv(1000), "-o", tmp_path / "p.csv", "--url", triton.url)
    assert result.exit_code == 1
    assert (
        "was answered by `preference_ensemble` version 2, those before by `preference_ensemble` version 1"
        in result.stderr
    )
    assert not (tmp_path / "p.csv").exists()


def test_a_submission_that_the_server_fails_does_not_ask_to_mend_the_row(
    triton: Any, run: Any, battles_csv: Any, tmp_path: Path
) -> None:
    triton.before = lambda received, context: context.abort(grpc.StatusCode.INTERNAL, "engine broke")
    result = run(battles_csv(5), "-o", tmp_path / "p.csv", "--url", triton.url, "--submission")
    assert result.exit_code == 1
    assert "Correct the row" not in result.stderr
    assert "not the row's fault" in result.stderr
