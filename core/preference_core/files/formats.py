"""The file formats that rows come in, each as one function from an open binary file to a `Table`.

What a function opens on top of the file it leaves to the stack that it is given. It knows how rows and columns are
written down, and nothing of what they mean. Parquet needs pyarrow (the extra `parquet`), imported when it is used.
"""

import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.errors import SystemFailure, UserError

FormatName = Literal["csv", "tsv", "jsonl", "parquet"]
RawRow = Mapping[str, Any]

#: What happens to bytes that are not UTF-8: they fail their row, or become U+FFFD.
InvalidBytes = Literal["surrogateescape", "replace"]

#: Characters of one CSV field or of one line of JSON. A longer one is a quote that never closes, or another format.
MAX_TEXT_CHARACTERS = 64 * 2**20

_GZIP_MAGIC = b"\x1f\x8b"
_NOT_TEXT = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK\x03\x04": "a ZIP archive or a workbook",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with Zstandard",
    b"PAR1": "Parquet",
}
_INVALID_BYTE = re.compile("[\udc80-\udcff]")
_PARQUET_BATCH_ROWS = 256
_PARQUET_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file: its place (`line 7`), its values, and why it cannot be read, if so."""

    place: str
    values: RawRow
    error: UserError | None = None


@dataclass(frozen=True)
class Table:
    """Columns of a file (None if it does not tell), and its rows, read once. `records` is given the columns wanted."""

    columns: tuple[str, ...] | None
    records: Callable[[Sequence[str]], Iterator[Record]]


Opener = Callable[[io.BufferedReader, ExitStack, InvalidBytes], Table]


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Names the file in what reading it raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"`{path}`: {error.message}", pull_hint(Path(path)) or error.hint) from error
    except _errors_of_reading() as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's and Arrow's own have none
            raise SystemFailure(f"`{path}` cannot be read: {error}") from error
        raise UserError(f"`{path}` is damaged, or not of its format: {error}", pull_hint(Path(path))) from error


def _errors_of_reading() -> tuple[type[Exception], ...]:
    arrow = sys.modules.get("pyarrow")
    return (OSError, EOFError, zlib.error, *([arrow.ArrowException] if arrow else []))


def _delimited(delimiter: str) -> Opener:
    def table(file: io.BufferedReader, stack: ExitStack, invalid: InvalidBytes) -> Table:
        # The limit belongs to the csv module as a whole; its default of 131,072 is below real responses.
        csv.field_size_limit(MAX_TEXT_CHARACTERS)
        reader = csv.reader(_text(file, stack, invalid, newline=""), delimiter=delimiter, strict=True)
        try:
            header = tuple(next(reader, ()))
        except csv.Error as error:
            raise UserError(f"The header cannot be read: {error}") from error
        return Table(header, lambda wanted: _delimited_records(reader, header, wanted))

    return table


def _delimited_records(reader: Any, header: Sequence[str], wanted: Sequence[str]) -> Iterator[Record]:
    while True:
        line = reader.line_num + 1
        place = f"line {line}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise UserError(
                    f"From {place} on, a field has more than {MAX_TEXT_CHARACTERS} characters",
                    hint="Is there a quote that never closes?",
                ) from error
            yield Record(f"lines {line} to {reader.line_num}", {}, UserError(f"the row is not valid: {error}"))
            continue
        row = dict(zip(header, values, strict=False))
        names = [values[0].lstrip("\ufeff"), *values[1:]] if values else []
        if names and names[0] in header and len(set(header) & set(names)) > 2:
            yield _second_header(place, header, names)
        elif len(values) == len(header):
            yield Record(place, row, _invalid_byte((column, row[column]) for column in wanted))
        elif values:  # a blank line has none
            yield Record(place, row, UserError(f"the row has {len(values)} columns, the header has {len(header)}"))


def _second_header(place: str, header: Sequence[str], names: Sequence[str]) -> Record:
    """The header of a file that was joined to this one: a row with an error, or an error if its columns are others."""
    if tuple(names) == header:
        return Record(place, {}, UserError("the row repeats the header", hint="Join files without their headers."))
    raise UserError(
        f"from {place} on, the columns are others: the row is a second header",
        hint="Join files with the same columns in the same order, without their headers.",
    )


def _json_lines(file: io.BufferedReader, stack: ExitStack, invalid: InvalidBytes) -> Table:
    lines = _lines(_text(file, stack, invalid, newline="\n"))
    first = next(lines, None)
    if first is None:
        return Table(None, lambda wanted: iter(()))
    record = _json_record(*first)
    if record.error is not None:
        raise UserError(f"not a JSON Lines file; {record.place}: {record.error.message}")
    return Table(
        tuple(record.values),
        lambda wanted: itertools.chain([record], itertools.starmap(_json_record, lines)),
    )


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and texts of the lines that are not blank."""
    for number in itertools.count(1):
        line = text.readline(MAX_TEXT_CHARACTERS + 1)
        if len(line) > MAX_TEXT_CHARACTERS:
            raise UserError(f"Line {number} has more than {MAX_TEXT_CHARACTERS} characters")
        if not line:
            return
        if not line.isspace():
            yield number, line


def _json_record(number: int, line: str) -> Record:
    place = f"line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Record(place, {}, UserError(f"the row is not JSON: {error}"))
    if not isinstance(values, dict):
        return Record(place, {}, UserError(f"the row is a JSON {type(values).__name__}, expected an object"))
    return Record(place, values, _invalid_byte([("row", line)]))


def _parquet(file: io.BufferedReader, stack: ExitStack, invalid: InvalidBytes) -> Table:
    if not file.seekable():
        raise UserError("Parquet cannot be read from a pipe", hint="Name the file itself.")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Reading Parquet needs pyarrow", hint="Install it: `pip install pyarrow`.") from error
    parquet = stack.enter_context(
        pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES)
    )
    return Table(tuple(parquet.schema_arrow.names), lambda wanted: _parquet_records(parquet, wanted, invalid))


def _parquet_records(parquet: Any, wanted: Sequence[str], invalid: InvalidBytes) -> Iterator[Record]:
    number = itertools.count(1)
    for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=list(wanted)):
        columns = [_python_values(batch.column(name), invalid) for name in wanted]
        for values in zip(*columns, strict=True):
            row = dict(zip(wanted, values, strict=True))
            yield Record(f"row {next(number)}", row, _invalid_byte(row.items()))


def _python_values(column: Any, invalid: InvalidBytes) -> list[Any]:
    """Values of an Arrow array. Text goes through bytes: Arrow does not check that it is UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return [_decoded(value, invalid) for value in column.cast(_as_binary(column.type)).to_pylist()]


def _as_binary(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    return kind


def _decoded(value: Any, invalid: InvalidBytes) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors=invalid)
    return [_decoded(turn, invalid) for turn in value] if isinstance(value, list) else value


def _invalid_byte(values: Iterable[tuple[str, Any]]) -> UserError | None:
    """What is wrong with the first value that holds a byte that is not UTF-8, a lone surrogate since `_text`."""
    for column, value in values:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii() and (found := _INVALID_BYTE.search(text)):
                byte = ord(found.group()) - 0xDC00
                return UserError(f"`{column}` is not UTF-8: it has a byte 0x{byte:02x}", hint="Save the file as UTF-8.")
    return None


def _text(file: io.BufferedReader, stack: ExitStack, invalid: InvalidBytes, newline: str) -> io.TextIOWrapper:
    """The text of a file, unpacked if it is gzipped."""
    if file.peek(2)[:2] == _GZIP_MAGIC:
        file = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
    for start, what in _NOT_TEXT.items():
        if file.peek(len(start)).startswith(start):
            raise UserError(f"the file is {what}, expected UTF-8 text", hint="Unpack it, or save it as UTF-8.")
    return stack.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", errors=invalid, newline=newline))


FORMATS: Mapping[FormatName, Opener] = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "jsonl": _json_lines,
    "parquet": _parquet,
}
