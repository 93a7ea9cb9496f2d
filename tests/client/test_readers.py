"""Every file format, and everything that may be wrong with a file."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preference_client.readers import BattleFile
from preference_client.rows import Row
from preference_core.battles.battle import Battle
from preference_core.errors import BattleError, UserError
from preference_core.files import formats
from preference_core.files.rows import format_of

ROWS = [
    {"id": "0012", "prompt": ["one", "two\nlines"], "response_a": ["a,b", 'quo"ted'], "response_b": ["", "🙂"]},
    {"id": "98765432109876543210", "prompt": ["x"], "response_a": ["null"], "response_b": ['","']},
]
EXPECTED = [
    Row("0012", Battle(("one", "two\nlines"), ("a,b", 'quo"ted'), ("", "🙂"))),
    Row("98765432109876543210", Battle(("x",), ("null",), ('","',))),
]
HEADER = "id,prompt,response_a,response_b\n"


def _delimited(delimiter: str) -> bytes:
    text = io.StringIO()
    for values in (list(ROWS[0]), *(list(row.values()) for row in ROWS)):
        cells = [value if isinstance(value, str) else json.dumps(value) for value in values]
        text.write(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\r\n")
    return text.getvalue().encode()


def _json_lines() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _parquet(table: Any = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS) if table is None else table, file)
    return file.getvalue()


def rows_of(path: Path, content: bytes, **options: Any) -> list[Row]:
    path.write_bytes(content)
    with BattleFile(str(path), **options) as battles:
        return list(battles)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.csv", _delimited(",")),
        ("b.CSV", b"\xef\xbb\xbf" + _delimited(",")),
        ("b.tsv", _delimited("\t")),
        ("b.jsonl", _json_lines()),
        ("b.ndjson", b"\xef\xbb\xbf" + _json_lines().replace(b"\n", b"\r\n\n")),
        ("b.csv.gz", gzip.compress(_delimited(","), mtime=0)),
        ("b.tsv.gz", gzip.compress(_delimited("\t"), mtime=0)),
        ("b.jsonl.gz", gzip.compress(_json_lines(), mtime=0)),
        ("gzipped_without_saying_so.csv", gzip.compress(_delimited(","), mtime=0)),
        ("b.parquet", _parquet()),
    ],
)
def test_every_format_gives_the_same_rows_and_ids_as_text(tmp_path: Path, name: str, content: bytes) -> None:
    assert rows_of(tmp_path / name, content) == EXPECTED


def test_a_format_that_is_named_beats_the_suffix(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "battles.txt", _delimited("\t"), file_format="tsv") == EXPECTED


@pytest.mark.parametrize("path", ["-", "battles", "battles.txt", "battles.gz"])
def test_a_name_that_tells_no_format_asks_for_one(path: str) -> None:
    with pytest.raises(UserError) as error:
        format_of(path)
    assert "--format" in str(error.value.hint)


@pytest.mark.parametrize("name", ["b.csv", "b.tsv", "b.jsonl", "b.parquet"])
def test_a_missing_column_is_named_beside_those_found(tmp_path: Path, name: str) -> None:
    content = {
        "b.csv": b"id,prompt,responseA\n1,a,b\n",
        "b.tsv": b"id\tprompt\tresponseA\n1\ta\tb\n",
        "b.jsonl": b'{"id": 1, "prompt": "a", "responseA": "b"}\n',
        "b.parquet": _parquet(pa.table({"id": [1], "prompt": ["a"], "responseA": ["b"]})),
    }[name]
    with pytest.raises(UserError, match=r"no column `response_a`; found 'id', 'prompt', 'responseA'"):
        rows_of(tmp_path / name, content)


def test_an_empty_csv_file_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column `prompt`; found none"):
        rows_of(tmp_path / "b.csv", b"")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`prompt` 2 times"):
        rows_of(tmp_path / "b.csv", b"prompt,prompt,response_a,response_b\n1,2,3,4\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.csv", HEADER.encode()),
        ("b.csv", HEADER.strip().encode()),
        ("b.jsonl", b""),
        ("b.jsonl", b"\n\n"),
        ("b.parquet", _parquet(pa.Table.from_pylist(ROWS).slice(0, 0))),
        ("b.csv.gz", gzip.compress(HEADER.encode(), mtime=0)),
    ],
)
def test_a_file_without_rows_is_no_error(tmp_path: Path, name: str, content: bytes) -> None:
    assert rows_of(tmp_path / name, content) == []


def test_without_ids_rows_are_numbered_from_one(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("prompt,response_a,response_b\na,b,c\nd,e,f\n")
    with BattleFile(str(path)) as battles:
        assert not battles.has_ids
        assert [row.id for row in battles] == ["1", "2"]


def test_another_column_may_hold_the_ids(tmp_path: Path) -> None:
    content = b"question,prompt,response_a,response_b,id\n007,a,b,c,1\n"
    assert rows_of(tmp_path / "b.csv", content, id_column="question")[0].id == "007"
    with pytest.raises(UserError, match="no column `key`"):
        rows_of(tmp_path / "b.csv", content, id_column="key")


def test_ids_may_have_to_be_of_one_row_each(tmp_path: Path) -> None:
    content = (HEADER + "1,p,x,y\n2,p,x,y\n1,q,x,y\n,p,x,y\n").encode()
    rows = rows_of(tmp_path / "b.csv", content, unique_ids=True)
    assert [str(row.battle) for row in rows[2:]] == ["the id `1` is repeated", "there is no id"]
    assert all(isinstance(row.battle, Battle) for row in rows_of(tmp_path / "b.csv", content))


@pytest.mark.parametrize(
    ("header", "missing", "hint"),
    [
        ("id,Prompt,response_a,response_b", "prompt", "Rename the column 'Prompt' to `prompt`."),
        ("id,prompt, response_a,response_b", "response_a", "Rename the column ' response_a' to `response_a`."),
        ("ID,prompt,response_a,response_b", "id", "Rename the column 'ID' to `id`."),
        ("id\tprompt\tresponse_a\tresponse_b", "prompt", "The columns are separated by tabs: pass `--format tsv`."),
        ("id;prompt;response_a;response_b", "prompt", "The columns are separated by semicolons: save it with commas."),
    ],
)
def test_a_header_that_is_nearly_right_is_named(tmp_path: Path, header: str, missing: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"has no column `{missing}`") as caught:
        rows_of(tmp_path / "b.csv", f"{header}\n1,p,x,y\n".encode())
    assert caught.value.hint == hint


def test_a_header_that_is_repeated_fails_its_row_alone(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "b.csv", (HEADER + "1,p,x,y\n" + HEADER + "2,p,x,y\n").encode())
    assert [row.id for row in rows] == ["1", "2", "2"]
    assert "line 3: the row repeats the header" in str(rows[1].battle)


def test_ragged_and_unparsable_csv_rows_fail_alone(tmp_path: Path) -> None:
    content = HEADER + 'a,p,x,y\nb,p,x\nc,p,x,y,z\n\nd,"p"q,x,y\ne,p,x,y\n'
    rows = rows_of(tmp_path / "b.csv", content.encode())
    assert [row.id for row in rows] == ["a", "b", "c", "4", "e"]
    assert isinstance(rows[0].battle, Battle)
    assert isinstance(rows[4].battle, Battle)
    messages = [str(row.battle) for row in rows[1:4]]
    assert "line 3: the row has 3 columns, the header has 4" in messages[0]
    assert "line 4: the row has 5 columns" in messages[1]
    assert "lines 6 to 6" in messages[2]


def test_a_quote_that_never_closes_is_reported_with_the_lines_it_swallowed(tmp_path: Path) -> None:
    content = HEADER + 'a,p,x,y\nb,"p,x,y\nc,p,x,y\nd,p,x,y\n'
    rows = rows_of(tmp_path / "b.csv", content.encode())
    assert len(rows) == 2
    assert "lines 3 to 5: the row is not valid" in str(rows[1].battle)


def test_a_field_beyond_all_measure_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_TEXT_CHARACTERS", 1000)
    with pytest.raises(UserError, match="From line 2 on, a field has more than 1000 characters"):
        rows_of(tmp_path / "b.csv", (HEADER + f'a,"{"x" * 2000}",x,y\n').encode())
    with pytest.raises(UserError, match="Line 1 has more than 1000"):
        rows_of(tmp_path / "b.jsonl", json.dumps({"prompt": "x" * 2000}).encode())


def test_a_field_of_a_million_characters_is_read(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "b.csv", (HEADER + f'a,"{"x" * 1_000_000}",x,y\n').encode())
    assert isinstance(row.battle, Battle)
    assert len(row.battle.prompt[0]) == 1_000_000


@pytest.mark.parametrize(
    ("bad", "what"),
    [(b"caf\xe9", "line 3: `response_a` is not UTF-8: it has a byte 0xe9"), (b"nul\0", "`response_a` holds a NUL")],
)
def test_text_that_no_tokenizer_reads_fails_its_row_and_names_the_field(tmp_path: Path, bad: bytes, what: str) -> None:
    content = HEADER.encode() + b"1,p,x,y\n2,p," + bad + b",y\n3,p,x,y\n"
    first, second, third = rows_of(tmp_path / "b.csv", content)
    assert what in str(second.battle)
    assert first.battle == third.battle == Battle(("p",), ("x",), ("y",))
    replaced = rows_of(tmp_path / "b.csv", content, invalid_text="replace")[1].battle
    assert isinstance(replaced, Battle)
    assert "\ufffd" in replaced.response_a[0]


def test_a_lone_surrogate_in_json_fails_its_row_and_names_the_field(tmp_path: Path) -> None:
    content = (HEADER + '1,"[""p""]","[""\\ud800""]","[""y""]"\n').encode()
    (row,) = rows_of(tmp_path / "b.csv", content)
    assert isinstance(row.battle, BattleError)
    assert row.battle.field == "response_a"
    assert "U+D800" in str(row.battle)


def test_an_id_that_is_no_text_fails_its_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "b.csv", HEADER.encode() + b"\xff1,p,x,y\n2,p,x,y\n")
    assert "not readable text" in str(rows[0].battle)
    assert rows[1].id == "2"
    lines = [{"id": value, "prompt": "p", "response_a": "x", "response_b": "y"} for value in (1, 1.5, None, True, "a")]
    rows = rows_of(tmp_path / "b.jsonl", "\n".join(map(json.dumps, lines)).encode())
    assert [isinstance(row.battle, Battle) for row in rows] == [True, False, False, False, True]
    assert (rows[0].id, rows[4].id) == ("1", "a")


def test_json_lines_that_are_no_objects_fail_alone(tmp_path: Path) -> None:
    good = json.dumps(ROWS[1])
    lines = f'{good}\n{{"broken\n[1]\n{{"id": "z", "prompt": "p"}}\n{{"prompt": "p"}}\n{good}\n'
    rows = rows_of(tmp_path / "b.jsonl", lines.encode())
    assert (rows[0], rows[5]) == (EXPECTED[1], EXPECTED[1])
    assert [row.id for row in rows[1:5]] == ["2", "3", "z", "5"]
    for row, what in zip(
        rows[1:5],
        ("line 2: the row is not JSON", "line 3: the row is a JSON list", "response_a", "no `id`"),
        strict=True,
    ):
        assert what in str(row.battle)


def test_a_json_array_is_not_a_file_of_json_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a JSON Lines file"):
        rows_of(tmp_path / "b.jsonl", json.dumps(ROWS, indent=1).encode())


def _column(values: list[Any], kind: Any) -> Any:
    return pa.table({name: pa.array(values, kind) for name in ("prompt", "response_a", "response_b")})


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
    ],
)
def test_parquet_text_may_have_any_type_of_text(tmp_path: Path, kind: Any) -> None:
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    values: list[Any] = [["ü", None], ["x"]] if nested else ['["ü", null]', "x"]
    if kind == pa.binary():
        values = [value.encode() for value in values]
    table = _column(values, kind).set_column(0, "prompt", pa.array([["p", "q"], ["x"]], pa.list_(pa.string())))
    rows = rows_of(tmp_path / "b.parquet", _parquet(table))
    assert rows[0].battle == Battle(("p", "q"), ("ü", ""), ("ü", ""))
    assert rows[1].battle == Battle(("x",), ("x",), ("x",))


def test_parquet_text_that_is_not_utf8_fails_its_row(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"\xff", b"fine"]).view(pa.string())
    table = pa.table({"id": [1, 2, 3], "prompt": broken, "response_a": broken, "response_b": broken})
    rows = rows_of(tmp_path / "b.parquet", _parquet(table))
    assert [isinstance(row.battle, UserError) for row in rows] == [False, True, False]


def test_parquet_ids_of_every_integer_type_are_exact(tmp_path: Path) -> None:
    table = _column(["x", "y"], pa.string()).append_column("id", pa.array([2**64 - 1, 0], pa.uint64()))
    assert [row.id for row in rows_of(tmp_path / "b.parquet", _parquet(table))] == ["18446744073709551615", "0"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.parquet", b"this is not parquet"),
        ("b.csv.gz", gzip.compress(_delimited(",") * 1000, mtime=0)[:-200]),
        ("b.csv.gz", gzip.compress(_delimited(","), mtime=0)[:20] + b"rubbish" * 10),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(UserError, match="is damaged"):
        rows_of(tmp_path / name, content)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file `.*nothing\.csv`"):
        BattleFile(str(tmp_path / "nothing.csv"))
    with pytest.raises(UserError, match="cannot be read"):
        BattleFile(str(tmp_path), file_format="csv")


def test_how_far_the_reading_is_goes_from_nought_to_one(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(HEADER + "1,p,x,y\n" * 20_000)
    with BattleFile(str(path)) as battles:
        fractions = [battles.fraction() for _ in battles]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.5
    assert fractions[-1] == 1.0
