"""A file of battles as a stream of rows to be scored.

A row that cannot be read becomes a row with an error; a file that cannot be read raises. It knows nothing of scoring.
"""

from collections.abc import Iterator
from typing import Any

from preference_client.rows import Row
from preference_core.battles.battle import InvalidText, battle_from_row
from preference_core.errors import UserError
from preference_core.files.formats import FormatName, Record
from preference_core.files.rows import ID_COLUMN, RowFile, new_id, text_of_id
from preference_core.tensors import FIELDS


class BattleFile(RowFile):
    """An open file of battles. Iterate over it once, for its `Row`s; close it, or use it in a `with` statement.

    The columns `prompt`, `response_a` and `response_b` must be there. Ids are kept as text. A file without a column
    `id` gets row numbers, from 1, and `has_ids` is False; an `id_column` that was asked for must be there. With
    `unique_ids`, a row without an id of its own fails.
    """

    def __init__(
        self,
        path: str,
        *,
        file_format: FormatName | None = None,
        id_column: str | None = None,
        unique_ids: bool = False,
        invalid_text: InvalidText = "error",
    ) -> None:
        """Opens `path` (`-` is standard input) and reads its header. `UserError` if it is not a file of battles."""
        super().__init__(path, file_format=file_format, invalid_text=invalid_text)
        self._invalid_text: InvalidText = invalid_text
        self._id_column = id_column or ID_COLUMN
        self._known_ids: set[str] | None = set() if unique_ids else None
        try:
            self._check_columns(id_column)
        except UserError:
            self.close()
            raise

    @property
    def has_ids(self) -> bool:
        """Whether ids come from the file; otherwise they are row numbers."""
        return self.columns is None or self._id_column in self.columns

    def __iter__(self) -> Iterator[Row]:
        wanted = [*FIELDS, self._id_column] if self.has_ids else [*FIELDS]
        for number, record in enumerate(self.records(wanted), start=1):
            yield self._row(record, number)

    def _row(self, record: Record, number: int) -> Row:
        identity = str(number)
        try:
            if self.has_ids and self._id_column in record.values:
                identity = self._id_of(record.values[self._id_column])
            if record.error is not None:
                raise UserError(f"{record.place}: {record.error.message}", record.error.hint)
            if self.has_ids and self._id_column not in record.values:
                raise UserError(f"The row has no `{self._id_column}`")
            return Row(identity, battle_from_row(record.values, self._invalid_text))
        except UserError as error:
            return Row(identity, error)

    def _id_of(self, value: Any) -> str:
        if self._known_ids is None:
            return text_of_id(value)
        identity = new_id(value, self._known_ids)
        self._known_ids.add(identity)
        return identity

    def _check_columns(self, id_column: str | None) -> None:
        if self.columns is None:
            return
        similar = any(column.strip().casefold() == ID_COLUMN for column in self.columns)
        needed = (*FIELDS, *([self._id_column] if id_column or similar else []))
        for column in needed:
            if column not in self.columns:
                raise self.no_column(column)
        self.check_once(needed)
