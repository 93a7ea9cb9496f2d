"""Stages: folders that are made once, and made again only when what they are made from has changed.

A stage writes into a temporary folder beside its target, which is renamed into place when it is whole; a stage that is
killed leaves nothing that looks finished. It knows nothing of what the folders hold.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preference_core.artefacts.manifest import (
    FILE_NAME,
    files_below,
    fingerprint,
    read_manifest,
    sha256_of,
    verify,
    write_manifest,
)
from preference_core.errors import ArtefactError, UserError

#: The file in a folder that is being made which says from what.
_BEGUN = ".begun"


@dataclass(frozen=True)
class Stage:
    """One folder to make. `made_from` is all that decides its content; `packages` those whose version does too.

    `replaces` are other kinds of this program's folders that may give way to it, because they can be made again.
    """

    folder: Path
    kind: str
    made_from: Mapping[str, Any]
    packages: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", {package: version(package) for package in self.packages})

    def is_up_to_date(self) -> bool:
        """Whether the folder is whole and was made from the same; what it holds is checked against its manifest.

        Raises `UserError` when the folder exists and no stage of this kind, or of one that gives way to it, made it: it
        is not ours to replace.
        """
        if not self.folder.exists():
            return False
        try:
            manifest = read_manifest(self.folder)
        except ArtefactError:
            manifest = None
        if manifest is not None and manifest.kind in self.replaces:
            return False
        if manifest is None or manifest.kind != self.kind:
            raise UserError(
                f"`{self.folder}` exists, and is not a folder of {self.kind} that this command made",
                hint="Remove it, or name another folder in the configuration.",
            )
        try:
            verify(self.folder)
        except ArtefactError:
            return False
        wanted, found = (self.made_from, self.versions), (manifest.made_from, manifest.versions)
        return fingerprint(wanted) == fingerprint(found)

    def run(self, make: Callable[[Path], Mapping[str, Any]], *, resumable: bool = False) -> Mapping[str, Any]:
        """Calls `make` with an empty folder, adds a manifest with the details it returns, and puts it into place.

        With `resumable` the folder may hold what a run that was made from the same, and did not end, left in it.
        """
        part = self.folder.with_name(f".{self.folder.name}.part")
        begun, origin = part / _BEGUN, fingerprint((self.made_from, self.versions))
        if not (resumable and begun.is_file() and begun.read_text(encoding="utf-8") == origin):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            begun.write_text(origin, encoding="utf-8")
        details = make(part)
        begun.unlink()
        write_manifest(part, self.kind, made_from=self.made_from, versions=self.versions, details=details)
        replace_folder(part, self.folder)
        return details


def replace_folder(new: Path, target: Path) -> None:
    """Renames `new` to `target`; a folder that is already there gives way first."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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
