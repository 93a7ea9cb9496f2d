"""What predictions look like in a file, and that a file is whole or not there."""

import csv
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preference_client import Failure, Prediction, Row
from preference_client.codec import Ensemble
from preference_client.journal import Journal
from preference_client.writers import check_output, errors_path, schema_of
from preference_core.battles.battle import Battle
from preference_core.errors import ServerError, SystemFailure, UserError

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
MEMBERS = ("gemma", "llama")
COLUMNS = [
    "id",
    *LABELS,
    *(f"{member}_{label}" for member in MEMBERS for label in LABELS),
    "gemma_dropped_tokens",
    "llama_dropped_tokens",
]


def prediction(identity: str, probabilities: Any = (0.1, 0.2, 0.7)) -> Prediction:
    floats = np.array(probabilities, np.float32)
    dropped = np.array([[1, 2, 3], [0, 0, 40]], np.int32)
    return Prediction(
        identity,
        Ensemble("preference_ensemble", LABELS, MEMBERS),
        floats,
        np.stack([floats, floats[::-1]]),
        dropped[:, 0],
        dropped,
    )


def written(path: Path, *outcomes: Prediction | Failure, submission: bool = False) -> Path:
    with Journal(path, {}, schema_of(LABELS, MEMBERS, submission)) as journal:
        rows = (Row(outcome.id, Battle(("p",), ("a",), ("b",))) for outcome in outcomes)
        for _, outcome in zip(journal.noted(rows), outcomes, strict=True):
            journal.add(outcome)
        journal.finish()
    return path


def test_csv_has_ids_labels_members_and_dropped_tokens(tmp_path: Path) -> None:
    text = written(tmp_path / "p.csv", prediction("0012"), prediction('odd,"id"\nü')).read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines(keepends=True)))
    numbers = ["0.1", "0.2", "0.7", "0.1", "0.2", "0.7", "0.7", "0.2", "0.1", "6", "40"]
    assert rows == [COLUMNS, ["0012", *numbers], ['odd,"id"\nü', *numbers]]
    assert "\r" not in text


def test_parquet_has_the_same_columns_and_values(tmp_path: Path) -> None:
    table = pq.read_table(written(tmp_path / "p.parquet", prediction("0012"), prediction("é")))
    assert table.column_names == COLUMNS
    assert table.column("id").to_pylist() == ["0012", "é"]
    assert table.column("winner_tie").to_pylist() == [np.float32(0.7)] * 2
    assert table.column("llama_winner_model_a").to_pylist() == [np.float32(0.7)] * 2
    assert table.column("llama_dropped_tokens").to_pylist() == [40, 40]


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_a_submission_has_ids_and_labels_only(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, prediction("7"), submission=True)
    if name == "p.csv":
        assert path.read_text() == "id,winner_model_a,winner_model_b,winner_tie\n7,0.1,0.2,0.7\n"
    else:
        assert pq.read_table(path).column_names == ["id", *LABELS]


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_no_predictions_leave_a_header(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    if name == "p.csv":
        assert path.read_text() == ",".join(COLUMNS) + "\n"
    else:
        assert pq.read_table(path).column_names == COLUMNS
        assert pq.read_table(path).num_rows == 0


def test_csv_text_gives_back_every_float_exactly_and_rows_sum_to_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).dirichlet((0.05, 1.0, 1.0), 5000).astype(np.float32)
    path = written(tmp_path / "p.csv", *(prediction(str(n), row) for n, row in enumerate(values)), submission=True)
    rows = list(csv.reader(path.read_text().splitlines()))[1:]
    assert [row[0] for row in rows] == [str(n) for n in range(5000)]
    read = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_array_equal(read.astype(np.float32), values)
    assert np.abs(read.sum(axis=1) - 1).max() <= 1e-6
    assert max(len(cell) for row in rows for cell in row[1:]) <= 15


def test_failures_are_listed_with_row_and_id_on_one_line_each(tmp_path: Path) -> None:
    written(
        tmp_path / "p.csv", Failure(3, "id,3", ServerError("bad \x1b[31m thing")), Failure(9, "9", ServerError("worse"))
    )
    path = errors_path(tmp_path / "p.csv")
    assert path.name == "p.errors.csv"
    assert list(csv.reader(path.read_text().splitlines())) == [
        ["row", "id", "error"],
        ["3", "id,3", "bad \\x1b[31m thing"],
        ["9", "9", "worse"],
    ]


def test_a_run_without_failures_removes_the_list_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "p.errors.csv"
    path.write_text("older")
    written(tmp_path / "p.csv")
    assert not path.exists()


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "p.csv").symlink_to(tmp_path / "real" / "p.csv")
    written(tmp_path / "p.csv", prediction("1"))
    assert (tmp_path / "p.csv").is_symlink()
    assert (tmp_path / "real" / "p.csv").read_text().startswith("id,")


def test_a_full_disk_is_a_failure_of_the_system_and_the_same_run_goes_on_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("older")
    rows = [prediction(str(n)) for n in range(20_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SystemFailure, match=r"p\.csv` cannot be written"):
            written(path, *rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "older"
    with Journal(path, {}, schema_of(LABELS, MEMBERS)) as journal:
        kept = journal.counts.rows
    assert 0 < kept < 20_000
    written(path, *rows[kept:])
    assert path.read_text() == written(tmp_path / "other.csv", *rows).read_text()


@pytest.mark.parametrize(
    ("output", "named"),
    [("p.txt", "p.txt"), ("nowhere/p.csv", "nowhere"), ("battles.csv", "is also the input")],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path: Path, output: str, named: str) -> None:
    source = tmp_path / "battles.csv"
    source.write_text("")
    with pytest.raises(UserError, match=named):
        check_output(tmp_path / output, str(source))


READ_AND_WRITE = """
import sys
from pathlib import Path
import numpy as np
from preference_client import Prediction
from preference_client.codec import Ensemble
from preference_client.journal import Journal
from preference_client.readers import BattleFile
from preference_client.writers import schema_of
labels, floats, whole = ("a", "b"), np.array([0.25, 0.75], np.float32), np.zeros((1, 3), np.int32)
def peak_bytes(): return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
rows = 0
ensemble = Ensemble("preference_ensemble", labels, ("m",))
with BattleFile(sys.argv[1]) as battles, Journal(Path(sys.argv[2]), {}, schema_of(labels, ("m",))) as journal:
    for row in journal.noted(battles):
        journal.add(Prediction(row.id, ensemble, floats, floats[None], whole[:, 0], whole))
        rows += 1
        if rows == 20_000:
            early = peak_bytes()
    journal.finish()
print(rows, peak_bytes() - early)
"""


def _as_csv(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("id,prompt,response_a,response_b\n")
        file.writelines(f"{n},{'p' * 200},{'x' * 200},{'y' * 200}\n" for n in range(rows))


def _as_parquet(path: Path, rows: int) -> None:
    ids = pa.array([str(n) for n in range(rows)])
    texts = pa.array([f"{n} " + "x" * 200 for n in range(rows)])
    table = pa.table({"id": ids, "prompt": texts, "response_a": texts, "response_b": texts})
    pq.write_table(table, path, use_dictionary=False, compression="none")


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "fill", "rows"), [(".csv", _as_csv, 200_000), (".parquet", _as_parquet, 80_000)])
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, suffix: str, fill: Callable[[Path, int], None], rows: int
) -> None:
    source = tmp_path / f"battles{suffix}"
    fill(source, rows)
    assert source.stat().st_size > 600 * rows
    line = [sys.executable, "-c", READ_AND_WRITE, str(source), str(tmp_path / f"out{suffix}")]
    seen, growth_bytes = map(int, subprocess.run(line, check=True, capture_output=True, text=True).stdout.split())
    assert seen == rows
    assert growth_bytes < 30_000_000
