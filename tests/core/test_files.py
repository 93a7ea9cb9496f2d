"""Reading rows: every format gives the same ones, and what is not a row of the file is refused with its line."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from preference_core.errors import UserError
from preference_core.files.rows import read_rows

ROWS = [
    {"id": "1", "prompt": 'one\nline, and "another"', "response_a": "\u0142"},
    {"id": "2", "prompt": "", "response_a": "b\tc"},
]


def delimited(rows, delimiter):
    quoted = [
        [f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row] for row in (rows[0], *map(dict.values, rows))
    ]
    return "".join(delimiter.join(row) + "\n" for row in quoted).encode()


def content(suffix):
    if suffix == ".parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
        return sink.getvalue().to_pybytes()
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, ROWS)).encode()
    return delimited(ROWS, "\t" if suffix == ".tsv" else ",")


def file_of(folder, data, name="rows.csv"):
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows_whatever_the_case_of_its_name(tmp_path, suffix):
    for name in ("rows" + suffix, "ROWS.2024" + suffix.upper()):
        assert list(read_rows(file_of(tmp_path, content(suffix), name))) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_gzipped_file_is_read_whatever_it_is_called(tmp_path, suffix):
    for name in (f"rows{suffix}.gz", f"rows{suffix}"):
        assert list(read_rows(file_of(tmp_path, gzip.compress(content(suffix)), name))) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,prompt,answer\n1,Hi,a\n2,Hi\n", "line 3: the row has 2 columns, the header has 3"),
        ("id,prompt,answer\n1,Hi, there,a\n", "line 2: the row has 4 columns, the header has 3"),
        ('id,prompt\n1,"two\nlines"\n\n2\n', "line 5: the row has 1 columns, the header has 2"),
        ('id,prompt\n1,"a\n2,b\n', "lines 2 to 3: the row is not valid: unexpected end of data"),
    ],
    ids=["short", "long", "after a blank line", "open quote"],
)
def test_a_row_without_the_columns_of_its_header_is_refused_with_file_and_line(tmp_path, text, message):
    path = file_of(tmp_path, text)
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert caught.value.message == f"`{path}`, {message}"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("id,prompt,answer", ", line 3: the row repeats the header"),
        ("\ufeffid,prompt,answer", ", line 3: the row repeats the header"),
        ("id,answer,prompt", ": from line 3 on, the columns are others"),
        ("id,prompt,answer,winner", ": from line 3 on, the columns are others"),
    ],
    ids=["same", "byte order mark", "other order", "more columns"],
)
def test_the_header_of_a_joined_file_is_no_row(tmp_path, second, message):
    path = file_of(tmp_path, f"id,prompt,answer\n1,prompt,answer\n{second}\n2,Hi,a\n")
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    assert caught.value.message.startswith(f"`{path}`{message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1, "prompt": "a"}\n\n{"id": 2}\n', "line 3: the row lacks `prompt`"),
        ('{"id": 1}\n{"id": 2, "prompt": "a"}\n', "line 2: the row has `prompt`"),
        ('{"id": 1}\nid\n', "line 2: the row is not JSON"),
        ("[1]\n", "line 1: the row is a JSON list, expected an object"),
    ],
    ids=["lacks", "has", "no JSON", "list"],
)
def test_lines_of_json_that_are_no_row_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        list(read_rows(file_of(tmp_path, text, "rows.jsonl")))


def test_the_columns_of_json_come_in_the_order_of_the_first_line(tmp_path):
    path = file_of(tmp_path, '{"id": 1, "prompt": "a"}\n{"prompt": "b", "id": 2}\n', "rows.jsonl")
    assert [list(row.values()) for row in read_rows(path)] == [[1, "a"], [2, "b"]]


def test_a_repeated_column_of_parquet_is_refused(tmp_path):
    table = pyarrow.table([["1"], ["2"]], names=["id", "id"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="has the column `id` 2 times"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.csv", "id,prompt\n1,caf\u00e9\n".encode("latin-1"), r"is not UTF-8: it has a byte 0xe9"),
        ("rows.parquet", b"PAR1 and nothing else", "is damaged, or not of its format"),
        ("rows.csv.gz", gzip.compress(b"id,prompt\n" * 99)[:30], "is damaged, or not of its format"),
        ("rows.csv", "id,prompt".encode("utf-16"), "the file is UTF-16, expected UTF-8 text"),
        ("rows.csv", b"PK\x03\x04 and so on", "the file is a ZIP archive or a workbook"),
        ("rows.jsonl.gz", gzip.compress(b"PAR1 and so on"), "the file is Parquet, expected UTF-8 text"),
        ("rows.xlsx", b"", "has no known file extension"),
    ],
    ids=["Latin-1", "no Parquet", "cut gzip", "UTF-16", "workbook", "Parquet", "unknown"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, message):
    path = file_of(tmp_path, data, name)
    with pytest.raises(UserError, match=message) as caught:
        list(read_rows(path))
    assert f"`{path}`" in caught.value.message


def test_a_file_without_rows_has_none(tmp_path):
    for name in ("rows.csv", "rows.jsonl"):
        assert list(read_rows(file_of(tmp_path, "", name))) == []
