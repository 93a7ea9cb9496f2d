"""Reading labelled battles: what is wrong is named, with its row."""

import pyarrow
import pyarrow.parquet
import pytest

from preference_core.errors import UserError
from preference_training.battles.rows import read_labelled

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
HEAD = "id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"


def csv_file(folder, *rows):
    path = folder / "battles.csv"
    path.write_text(HEAD + "".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, ids):
    table = {"id": ids, "prompt": ["p", "q"], "response_a": ["a", "b"], "response_b": ["c", "d"]}
    pyarrow.parquet.write_table(pyarrow.table({**table, "winner": ["model_b", "model_a"]}), path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file `.*nothing.csv`"):
        read_labelled(tmp_path / "nothing.csv", LABELS)


def test_a_row_without_a_label_is_named(tmp_path):
    with pytest.raises(UserError, match=r"line 3: .*exactly one"):
        read_labelled(csv_file(tmp_path, "1,p,a,b,1,0,0", "2,p,a,b,0,0,0"), LABELS)


def test_a_repeated_id_is_named(tmp_path):
    with pytest.raises(UserError, match="line 3: the id `1` is repeated"):
        read_labelled(csv_file(tmp_path, "1,p,a,b,1,0,0", "1,p,a,b,0,1,0"), LABELS)


def test_a_number_is_an_id_even_if_it_is_zero(tmp_path):
    write_parquet(tmp_path / "battles.parquet", [0, 1])
    assert read_labelled(tmp_path / "battles.parquet", ("model_a", "model_b")).ids == ("0", "1")


@pytest.mark.parametrize("missing", [None, ""])
def test_a_row_without_an_id_is_named(tmp_path, missing):
    write_parquet(tmp_path / "battles.parquet", ["x", missing])
    with pytest.raises(UserError, match="row 2: there is no id"):
        read_labelled(tmp_path / "battles.parquet", ("model_a", "model_b"))


def test_a_file_without_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no battles"):
        read_labelled(csv_file(tmp_path), LABELS)


@pytest.mark.parametrize(
    ("identity", "shown"),
    [
        (3008710900.0, r"3008710900\.0"),
        (True, "True"),
        ("1.0", r"'1\.0'"),
        ("1.2345e+18", r"'1\.2345e\+18'"),
        ("nan", "'nan'"),
    ],
)
def test_an_id_that_is_neither_text_nor_a_whole_number_is_refused(tmp_path, identity, shown):
    write_parquet(tmp_path / "battles.parquet", [identity, None])
    with pytest.raises(UserError, match=rf"row 1: the id is {shown}, expected text or a whole number"):
        read_labelled(tmp_path / "battles.parquet", ("model_a", "model_b"))


def test_what_no_tokenizer_reads_is_replaced(tmp_path):
    data = read_labelled(csv_file(tmp_path, '1,"[""\\ud83d""]","[""a""]","[""b""]",1,0,0'), LABELS)
    assert data.battles[0].prompt == ("\ufffd",)


def test_parquet_with_a_winner_column_is_read(tmp_path):
    write_parquet(tmp_path / "battles.parquet", ["x", "y"])
    data = read_labelled(tmp_path / "battles.parquet", ("model_a", "model_b"))
    assert data.ids == ("x", "y")
    assert data.targets.tolist() == [1, 0]
