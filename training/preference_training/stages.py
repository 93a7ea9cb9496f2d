"""Stages: artefacts that a command makes once, and again only when what they are made from has changed.

It knows nothing of what the folders hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preference_core.artefacts.artefact import Artefact
from preference_core.artefacts.manifest import FILE_NAME, files_below, read_manifest, sha256_of
from preference_core.errors import ArtefactError, UserError


@dataclass(frozen=True)
class Stage(Artefact):
    """`replaces` are other kinds of this program's folders that may give way to it: they can be made again."""

    replaces: tuple[str, ...] = ()

    def is_up_to_date(self) -> bool:
        """Whether the folder is whole and was made from the same; what it holds is checked against its manifest.

        Raises `UserError` when the folder exists and no stage of this kind, or of one that gives way to it, made it: it
        is not ours to replace.
        """
        if not self.folder.exists():
            return False
        try:
            kind = read_manifest(self.folder).kind
        except ArtefactError:
            kind = ""
        if kind not in (self.kind, *self.replaces):
            raise UserError(
                f"`{self.folder}` exists, and is not a folder of {self.kind} that this command made",
                hint="Remove it, or name another folder in the configuration.",
            )
        return self.current() is not None

    def run(self, make: Callable[[Path], Mapping[str, Any]], *, resumable: bool = False) -> Mapping[str, Any]:
        """Calls `make` with a folder to fill; the details that it returns go into the manifest."""
        with self.draft(resumable=resumable) as draft:
            draft.details |= make(draft.folder)
        return draft.details


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both are there, and hold the same bytes."""
    if not (one.is_file() and other.is_file()) or one.stat().st_size != other.stat().st_size:
        return False
    return sha256_of(one) == sha256_of(other)


def content_of(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file of a folder but its manifest, by name: an input in `made_from`."""
    if path.is_file():
        return {path.name: sha256_of(path)}
    if not path.is_dir():
        raise UserError(f"There is no file or folder `{path}`")
    return {file.relative_to(path).as_posix(): sha256_of(file) for file in files_below(path) if file.name != FILE_NAME}
