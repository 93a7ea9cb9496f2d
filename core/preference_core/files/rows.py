"""Reads rows from CSV, TSV, JSON Lines (each perhaps gzipped) and Parquet, as a stream in bounded memory; their ids.

`formats` knows how rows are written down. What is wrong with a file or a row is said with its name and line.
"""

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np

from preference_core.battles.battle import UNREADABLE, InvalidText
from preference_core.errors import UserError
from preference_core.files.formats import FORMATS, FormatName, InvalidBytes, RawRow, Record, readable

STANDARD_INPUT = "-"
ID_COLUMN = "id"

_FORMAT_OF_SUFFIX: Mapping[str, FormatName] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

#: A whole number that went through a column of floats: `12.0`, `1.2e+18`. A `1e18` may be the start of a hash.
_FLOAT = re.compile(r"\d+\.0|\d(?:\.\d+)?[eE]\+\d+|nan|NaN")

T = TypeVar("T")


def format_of(path: str) -> FormatName:
    """The format that a file's suffix tells; `.gz` behind it does not matter."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
    if path != STANDARD_INPUT and suffixes and suffixes[-1] in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[suffixes[-1]]
    what = "Standard input" if path == STANDARD_INPUT else f"The name `{path}`"
    raise UserError(
        f"{what} has no known file extension",
        hint=f"Expected one of {', '.join(_FORMAT_OF_SUFFIX)}; `preference-score` takes `--format`.",
    )


class RowFile:
    """An open file of rows. `records` may be iterated over once; close it, or use it in a `with` statement."""

    def __init__(
        self, path: str, *, file_format: FormatName | None = None, invalid_text: InvalidText = "error"
    ) -> None:
        """Opens `path` (`-` is standard input) and reads its header. `UserError` if it is not of its format."""
        table_of = FORMATS[file_format or format_of(path)]
        self.path = path
        self._file, self._bytes = _open(path)
        self._stack = ExitStack()
        self._stack.enter_context(self._file)
        try:
            with readable(path):
                on_invalid: InvalidBytes = "replace" if invalid_text == "replace" else "surrogateescape"
                self._table = table_of(self._file, self._stack, on_invalid)
        except BaseException:
            self.close()
            raise

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns of the file; None for JSON Lines without any line."""
        return self._table.columns

    def records(self, wanted: Sequence[str]) -> Iterator[Record]:
        """The rows, with at least the `wanted` columns of those that the file has."""
        with readable(self.path):
            yield from self._table.records(wanted)

    def check_once(self, columns: Sequence[str]) -> None:
        """Raises `UserError` when one of `columns` is there more than once."""
        for column, count in Counter(self.columns).items():
            if count > 1 and column in columns:
                raise UserError(f"`{self.path}` has the column `{column}` {count} times")

    def no_column(self, column: str) -> UserError:
        """The error that says that `column` is missing, with what is there in its place."""
        columns = self.columns or ()
        shown = ", ".join(repr(name if len(name) <= 40 else name[:40] + "...") for name in columns)
        hint = "Rename a column."
        for separator, name in (("\t", "tabs: pass `--format tsv`"), (";", "semicolons: save it with commas")):
            if len(columns) == 1 and separator in columns[0]:
                hint = f"The columns are separated by {name}."
        for name in columns:
            if name.strip().casefold() == column.casefold():
                hint = f"Rename the column {name!r} to `{column}`."
        return UserError(f"`{self.path}` has no column `{column}`; found {shown or 'none'}", hint)

    def fraction(self) -> float | None:
        """How much of the file has been read, from 0 to 1; None where its size is not known."""
        return self._file.tell() / self._bytes if self._bytes else None

    def close(self) -> None:
        """Closes the file; standard input stays open."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_each(path: Path, value_of: Callable[[RawRow], T]) -> Iterator[T]:
    """`value_of` each row of a file; all rows have the same columns in the same order.

    Raises `UserError` naming file and line of the first row that cannot be read, or that `value_of` raises one for.
    """
    with RowFile(str(path)) as file:
        columns = file.columns or ()
        file.check_once(columns)
        for record in file.records(columns):
            try:
                if record.error is not None:
                    raise record.error
                for column in record.values.keys() ^ set(columns):
                    has = "has" if column in record.values else "lacks"
                    raise UserError(f"the row {has} `{column}`, unlike the rows before")
                value = value_of({column: record.values[column] for column in columns})
            except UserError as error:
                raise UserError(f"`{path}`, {record.place}: {error.message}", error.hint) from error
            yield value


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file; errors as those of `read_each`."""
    return read_each(path, lambda row: row)


def values_by_id(path: Path, value_of: Callable[[RawRow], T]) -> dict[str, T]:
    """`value_of` each row of a file by its id, in order. Raises `UserError` at an id that is missing or repeated."""
    values: dict[str, T] = {}

    def add(row: RawRow) -> None:
        values[new_id(row.get(ID_COLUMN), values)] = value_of(row)

    for _ in read_each(path, add):
        pass
    return values


def new_id(value: Any, known: Container[str]) -> str:
    """An id as text. Raises `UserError` when there is none (null or empty text), or it is `known` already."""
    if value is None or value == "":
        raise UserError("there is no id")
    identity = text_of_id(value)
    if identity in known:
        raise UserError(f"the id `{identity}` is repeated")
    return identity


def text_of_id(value: Any) -> str:
    """An id as text, unchanged. Raises `UserError` where that cannot be done, as for a number with a fraction."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or _FLOAT.fullmatch(value):
        raise UserError(
            f"the id is {value!r}, expected text or a whole number",
            hint="A column of numbers with a gap becomes floats in pandas; save its ids as text.",
        )
    if UNREADABLE.search(value) is not None:
        raise UserError(f"the id {value!a} is not readable text")
    return value


def _open(path: str) -> tuple[io.BufferedReader, int]:
    """A binary file and its size in bytes, 0 where that is not known."""
    try:
        raw = io.FileIO(0, closefd=False) if path == STANDARD_INPUT else io.FileIO(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file `{path}`") from error
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}") from error
    return cast(io.BufferedReader, io.BufferedReader(raw)), os.fstat(raw.fileno()).st_size
