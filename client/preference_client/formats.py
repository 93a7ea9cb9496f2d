"""The file formats that battles come in, each as one function from an open binary file to a `Table`.

What a function opens on top of the file it leaves to the stack that it is given. It knows how rows and columns are
written down, and nothing of what they mean.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from preference_core.errors import SystemFailure, UserError

FormatName = Literal["csv", "tsv", "jsonl", "parquet"]

#: Characters of one CSV field or of one line of JSON. A longer one is a quote that never closes, or another format.
MAX_TEXT_CHARACTERS = 64 * 2**20

_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_BATCH_ROWS = 256
_PARQUET_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file: its values by column, and why it cannot be read, if so."""

    values: Mapping[str, Any]
    error: UserError | None = None


@dataclass(frozen=True)
class Table:
    """Columns of a file (None if it does not tell), and its rows, read once. `records` is given the columns wanted."""

    columns: tuple[str, ...] | None
    records: Callable[[Sequence[str]], Iterator[Record]]


Opener = Callable[[io.BufferedReader, ExitStack], Table]


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turns what reading a damaged file raises into errors that name it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise UserError(f"`{path}` is damaged, or not of its format: {error}") from error
    except OSError as error:
        raise SystemFailure(f"`{path}` cannot be read: {error}") from error


def _delimited(delimiter: str) -> Opener:
    def table(file: io.BufferedReader, stack: ExitStack) -> Table:
        # The limit belongs to the csv module as a whole; its default of 131,072 is below real responses.
        csv.field_size_limit(MAX_TEXT_CHARACTERS)
        reader = csv.reader(_text(file, stack, newline=""), delimiter=delimiter, strict=True)
        try:
            header = tuple(next(reader, ()))
        except csv.Error as error:
            raise UserError(f"The header cannot be read: {error}") from error
        return Table(header, lambda wanted: _delimited_records(reader, header))

    return table


def _delimited_records(reader: Any, header: Sequence[str]) -> Iterator[Record]:
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise UserError(
                    f"From line {line} on, a field has more than {MAX_TEXT_CHARACTERS} characters",
                    hint="Is there a quote that never closes?",
                ) from error
            yield Record({}, UserError(f"Lines {line} to {reader.line_num} are not valid: {error}"))
            continue
        if len(values) == len(header):
            yield Record(dict(zip(header, values, strict=True)))
        elif values:
            error_ = UserError(f"Line {line} has {len(values)} columns, the header has {len(header)}")
            yield Record(dict(zip(header, values, strict=False)), error_)


def _json_lines(file: io.BufferedReader, stack: ExitStack) -> Table:
    lines = _lines(_text(file, stack, newline="\n"))
    first = next(lines, None)
    if first is None:
        return Table(None, lambda wanted: iter(()))
    record = _json_record(*first)
    if record.error is not None:
        raise UserError(f"This is not a JSON Lines file. {record.error.message}")
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
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Record({}, UserError(f"Line {number} is not JSON: {error}"))
    if not isinstance(values, dict):
        return Record({}, UserError(f"Line {number} is a JSON {type(values).__name__}, expected an object"))
    return Record(values)


def _parquet(file: io.BufferedReader, stack: ExitStack) -> Table:
    if not file.seekable():
        raise UserError("Parquet cannot be read from a pipe", hint="Name the file itself.")
    parquet = stack.enter_context(pq.ParquetFile(file, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES))
    return Table(tuple(parquet.schema_arrow.names), lambda wanted: _parquet_records(parquet, wanted))


def _parquet_records(parquet: Any, wanted: Sequence[str]) -> Iterator[Record]:
    for batch in parquet.iter_batches(_PARQUET_BATCH_ROWS, columns=list(wanted)):
        columns = [_python_values(batch.column(name)) for name in wanted]
        for values in zip(*columns, strict=True):
            yield Record(dict(zip(wanted, values, strict=True)))


def _python_values(column: Any) -> list[Any]:
    """Values of an Arrow array. Bytes that are not UTF-8 become lone surrogates, which the battle's checks refuse."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return [_decoded(value) for value in column.cast(_as_binary(column.type)).to_pylist()]


def _as_binary(kind: Any) -> Any:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    return kind


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="surrogateescape")
    return [_decoded(turn) for turn in value] if isinstance(value, list) else value


def _text(file: io.BufferedReader, stack: ExitStack, newline: str) -> io.TextIOWrapper:
    """The text of a file, unpacked if it is gzipped. Bytes that are not UTF-8 become lone surrogates."""
    if file.peek(2)[:2] == _GZIP_MAGIC:
        file = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)))
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    return stack.enter_context(text)


FORMATS: Mapping[FormatName, Opener] = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "jsonl": _json_lines,
    "parquet": _parquet,
}
