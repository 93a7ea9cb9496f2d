"""The file formats that battles and predictions come in, each read row by row.

It knows how rows and columns are written down, and nothing of what they mean.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import pyarrow as pa

from preference_core.errors import SystemFailure, UserError

Row = Mapping[str, Any]

#: One answer may be far longer than the 128 KiB that the csv module allows by default.
_LONGEST_FIELD = 2**31 - 1
_GZIP_MAGIC = b"\x1f\x8b"


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a file as mappings from column to value, all with the same columns in the same order.

    The name's ending tells the format: .csv, .tsv, .jsonl (perhaps gzipped: .csv.gz) or .parquet, in either case.
    Raises `UserError` naming the file, and the line of a row that does not have the columns of the file.
    """
    if not path.is_file():
        raise UserError(f"There is no file `{path}`")
    read = _reader_of(path)
    try:
        with path.open("rb") as file:
            yield from read(file)
    except UserError as error:
        raise UserError(f"`{path}`: {error.message}", error.hint) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"`{path}` is not UTF-8: it has a byte 0x{error.object[error.start]:02x}", hint="Save it as UTF-8."
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
        raise UserError(f"`{path}` is damaged, or not of its format: {error}") from error
    except OSError as error:
        raise SystemFailure(f"`{path}` cannot be read: {error}") from error


def _reader_of(path: Path) -> Callable[[BinaryIO], Iterator[Row]]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if not suffixes or suffixes[-1] not in _READERS:
        *most, last = _READERS
        raise UserError(f"`{path}` has no known file extension", hint=f"Expected {', '.join(most)} or {last}.")
    return _READERS[suffixes[-1]]


def _csv_rows(text: TextIO, delimiter: str = ",") -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"lines {line} to {reader.line_num} are not valid: {error}") from error
        if columns is None:
            columns = values
            _check_columns(columns)
        elif len(values) == len(columns):
            yield dict(zip(columns, values, strict=True))
        elif values:  # a blank line has none
            raise UserError(f"line {line} has {len(values)} columns, the header has {len(columns)}")


def _json_rows(text: TextIO) -> Iterator[Row]:
    columns: list[str] | None = None
    for number, line in enumerate(text, start=1):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number} is a JSON {type(row).__name__}, expected an object")
        columns = list(row) if columns is None else columns
        if row.keys() != set(columns):
            column = min(row.keys() ^ set(columns))
            raise UserError(f"line {number} {'has' if column in row else 'lacks'} `{column}`, unlike the lines before")
        yield {column: row[column] for column in columns}


def _parquet_rows(file: BinaryIO) -> Iterator[Row]:
    import pyarrow.parquet

    parquet = pyarrow.parquet.ParquetFile(file)
    _check_columns(parquet.schema_arrow.names)
    for batch in parquet.iter_batches():
        yield from batch.to_pylist()


def _check_columns(columns: Sequence[str]) -> None:
    for column, count in Counter(columns).items():
        if count > 1:
            raise UserError(f"the column `{column}` is there {count} times")


def _of_text(rows_of: Callable[[TextIO], Iterator[Row]], newline: str) -> Callable[[BinaryIO], Iterator[Row]]:
    """A reader of text as one of a binary file, which is unpacked if it is gzipped."""

    def rows(file: BinaryIO) -> Iterator[Row]:
        is_gzipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        binary = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzipped else file
        with io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as text:
            yield from rows_of(text)

    return rows


_READERS: Mapping[str, Callable[[BinaryIO], Iterator[Row]]] = {
    ".csv": _of_text(_csv_rows, newline=""),
    ".tsv": _of_text(partial(_csv_rows, delimiter="\t"), newline=""),
    ".jsonl": _of_text(_json_rows, newline="\n"),
    ".parquet": _parquet_rows,
}
