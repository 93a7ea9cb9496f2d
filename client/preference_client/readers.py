"""Reads battles from CSV, TSV, JSON Lines (each perhaps gzipped) and Parquet, as a stream of rows in bounded memory.

A row that cannot be read becomes a row with an error; a file that cannot be read raises. It knows nothing of scoring.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from preference_client.formats import FORMATS, FormatName, Record, readable
from preference_client.rows import Row, text_of_id
from preference_core.battles.battle import InvalidText, battle_from_row
from preference_core.errors import UserError
from preference_core.tensors import FIELDS

STANDARD_INPUT = "-"
DEFAULT_ID_COLUMN = "id"

_FORMAT_OF_SUFFIX: Mapping[str, FormatName] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


def format_of(path: str) -> FormatName:
    """The format that a file's suffix tells; `.gz` behind it does not matter."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != ".gz"]
    if path != STANDARD_INPUT and suffixes and suffixes[-1] in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[suffixes[-1]]
    what = "Standard input" if path == STANDARD_INPUT else f"The name `{path}`"
    raise UserError(f"{what} has no known file extension", hint=f"Pass `--format` with one of: {', '.join(FORMATS)}.")


def _open(path: str) -> tuple[io.BufferedReader, int]:
    """A binary file and its size in bytes, 0 where that is not known."""
    try:
        raw = io.FileIO(0, closefd=False) if path == STANDARD_INPUT else io.FileIO(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no file `{path}`") from error
    except OSError as error:
        raise UserError(f"`{path}` cannot be read: {error.strerror}") from error
    return cast(io.BufferedReader, io.BufferedReader(raw)), os.fstat(raw.fileno()).st_size


class BattleFile:
    """An open file of battles. Iterate over it once, for its `Row`s; close it, or use it in a `with` statement.

    The columns `prompt`, `response_a` and `response_b` must be there. Ids are kept as text. A file without a column
    `id` gets row numbers, from 1, and `has_ids` is False; an `id_column` that was asked for must be there.
    """

    def __init__(
        self,
        path: str,
        *,
        file_format: FormatName | None = None,
        id_column: str | None = None,
        invalid_text: InvalidText = "error",
    ) -> None:
        """Opens `path` (`-` is standard input) and reads its header. `UserError` if it is not a file of battles."""
        table_of = FORMATS[file_format or format_of(path)]
        self.path = path
        self._invalid_text: InvalidText = invalid_text
        self._file, self._bytes = _open(path)
        self._stack = ExitStack()
        self._stack.enter_context(self._file)
        try:
            with readable(path):
                self._table = table_of(self._file, self._stack)
            self._id_column = id_column or DEFAULT_ID_COLUMN
            self._check_columns(id_column)
        except BaseException:
            self.close()
            raise

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns of the file; None for JSON Lines without any line."""
        return self._table.columns

    @property
    def has_ids(self) -> bool:
        """Whether ids come from the file; otherwise they are row numbers."""
        return self.columns is None or self._id_column in self.columns

    def fraction(self) -> float | None:
        """How much of the file has been read, from 0 to 1; None where its size is not known."""
        return self._file.tell() / self._bytes if self._bytes else None

    def __iter__(self) -> Iterator[Row]:
        wanted = [*FIELDS, self._id_column] if self.has_ids else [*FIELDS]
        with readable(self.path):
            for number, record in enumerate(self._table.records(wanted), start=1):
                yield self._row(record, number)

    def _row(self, record: Record, number: int) -> Row:
        identity = str(number)
        try:
            if self.has_ids and self._id_column in record.values:
                identity = text_of_id(record.values[self._id_column])
            if record.error is not None:
                return Row(identity, record.error)
            if self.has_ids and self._id_column not in record.values:
                raise UserError(f"The row has no `{self._id_column}`")
            return Row(identity, battle_from_row(record.values, self._invalid_text))
        except UserError as error:
            return Row(identity, error)

    def _check_columns(self, id_column: str | None) -> None:
        if self.columns is None:
            return
        for column in (*FIELDS, *([id_column] if id_column else [])):
            if column not in self.columns:
                raise UserError(
                    f"`{self.path}` has no column `{column}`; found {', '.join(map(repr, self.columns)) or 'none'}",
                    hint="Rename a column, or say `--id-column`." if column == id_column else "Rename a column.",
                )
            if self.columns.count(column) > 1:
                raise UserError(f"`{self.path}` has the column `{column}` {self.columns.count(column)} times")

    def close(self) -> None:
        """Closes the file; standard input stays open."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
