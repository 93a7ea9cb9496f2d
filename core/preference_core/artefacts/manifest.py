"""The manifest: what an artefact is, what it was made from, and the SHA-256 of every file in it.

A manifest stands beside the files it lists. Whoever is about to load or run them verifies them first, as
`python3 -m preference_core.artefacts.manifest FOLDER [KIND]` does. This module only hashes and compares, and does not
know what the files mean.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from preference_core.artefacts.contents import STRAY_FOLDER, UNREADABLE, contents_of, read_regular
from preference_core.artefacts.replacement import replaced_file
from preference_core.command import run_command
from preference_core.errors import ArtefactError, ConfigError, UserError
from preference_core.structure import plain, structure

FILE_NAME = "manifest.json"
PART_NAME = f".{FILE_NAME}.part"
FORMAT = 1
#: The `kind` of a model repository, the only one that a server may be given.
REPOSITORY = "repository"

#: Within `hashed_once`: SHA-256 by device, inode, size and time of the last write.
_known_hashes: ContextVar[dict[tuple[int, ...], str] | None] = ContextVar("known_hashes", default=None)


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`kind` says what the folder holds; `files` maps relative POSIX paths to their records.

    `empty_folders` are those in which there is no file (an ensemble's version: Triton needs the folder).
    `made_from` is whatever decides the content (configuration, hashes of inputs); `versions` the packages that made it;
    `parity` the measured differences from the original model; `details` anything else worth knowing.
    """

    kind: str
    files: Mapping[str, FileRecord]
    made_from: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    empty_folders: tuple[str, ...] = ()


@contextmanager
def hashed_once() -> Iterator[None]:
    """Inside, a file is read once for its SHA-256, under whatever names: again only when it was written to since."""
    token = _known_hashes.set({})
    try:
        yield
    finally:
        _known_hashes.reset(token)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    return _sha256(path, _known_hashes.get())


def sha256s_of(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of several files, read side by side."""
    known = _known_hashes.get()
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda path: _sha256(path, known), paths))


def _sha256(path: Path, known: dict[tuple[int, ...], str] | None) -> str:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if known is not None and identity in known:
            return known[identity]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known is not None:
        known[identity] = digest
    return digest


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-like value in canonical form: equal content, equal fingerprint."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder` but its manifest, sorted; `ArtefactError` for anything else than files and folders.

    What a writer of the manifest left that was killed is none of the artefact's files. Byte code is: Python would run
    it.
    """
    own = (folder / FILE_NAME, folder / PART_NAME)
    return [path for path in contents_of(folder).files if path not in own]


def write_manifest(folder: Path, manifest: Manifest, known_hashes: Mapping[str, str] | None = None) -> Manifest:
    """Writes `manifest` into `folder`, with a record of every file there. `SystemFailure` if the disk is full.

    `known_hashes` (relative POSIX path to SHA-256) spares reading large files again that were hashed while written;
    those that `manifest` has a record of already are not read either.
    """
    known = {name: record.sha256 for name, record in manifest.files.items()} | dict(known_hashes or {})
    files = {}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = FileRecord(bytes=path.stat().st_size, sha256=known.get(name) or sha256_of(path))
    empty = tuple(path.relative_to(folder).as_posix() for path in contents_of(folder).empty_folders)
    table = plain(replace(manifest, files=files, empty_folders=empty))
    with replaced_file(folder / FILE_NAME, folder / PART_NAME) as part:
        part.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return structure(Manifest, table)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; `ArtefactError` when there is none or it is not readable."""
    path = folder / FILE_NAME
    try:
        table = json.loads(read_regular(path).decode("utf-8"))
        manifest = structure(Manifest, table)
    except ConfigError as error:
        raise ArtefactError(f"`{path}`: {error.message}", error.hint) from error
    except FileNotFoundError as error:
        raise ArtefactError(f"`{folder}` has no {FILE_NAME}", hint="Make it with `preference-export`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"`{path}` cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise ArtefactError(f"`{path}` has format {manifest.format}, this version reads {FORMAT}")
    return manifest


def verify(folder: Path, *, kind: str | None = None, below: str = "") -> Manifest:
    """Checks everything in `folder` (or in its sub-folder `below`) against the manifest; returns the manifest.

    Raises `ArtefactError` naming the first file or folder that is missing, changed or unlisted, or when the manifest is
    of another `kind`.
    """
    manifest = read_manifest(folder)
    if kind is not None and manifest.kind != kind:
        raise ArtefactError(f"`{folder}` is of the kind `{manifest.kind}`, expected `{kind}`")
    listed = {name: record for name, record in manifest.files.items() if _is_below(name, below)}
    root = folder / below if below else folder
    present = {path.relative_to(folder).as_posix(): path for path in files_below(root)}
    hint = "Export it again; do not serve files that were changed by hand."
    for name in sorted(present.keys() - listed.keys()):
        raise ArtefactError(
            f"`{folder / name}` is not in the manifest",
            hint="Remove it: Python would run it." if "__pycache__" in name.split("/") else "Remove it.",
        )
    for name, record in sorted(listed.items()):
        if name not in present:
            raise ArtefactError(f"`{folder / name}` is missing", hint=hint)
        size = present[name].stat().st_size
        if size != record.bytes:
            raise ArtefactError(f"`{folder / name}` has {size} bytes, its manifest says {record.bytes}", hint=hint)
        try:
            digest = sha256_of(present[name])
        except OSError as error:
            raise ArtefactError(f"`{folder / name}` cannot be read: {error.strerror}", hint=UNREADABLE) from error
        if digest != record.sha256:
            raise ArtefactError(
                f"`{folder / name}` was changed: its SHA-256 is {digest}, its manifest says {record.sha256}", hint=hint
            )
    empty = {path.relative_to(folder).as_posix() for path in contents_of(root).empty_folders}
    listed_empty = {name for name in manifest.empty_folders if _is_below(name, below)}
    for name in sorted(empty - listed_empty):
        raise ArtefactError(f"`{folder / name}` is an empty folder that is not in the manifest", hint=STRAY_FOLDER)
    for name in sorted(listed_empty - empty):
        raise ArtefactError(f"`{folder / name}` is missing", hint=hint)
    return manifest


def _is_below(name: str, below: str) -> bool:
    return not below or name.startswith(below.rstrip("/") + "/")


def main(arguments: Sequence[str]) -> None:
    """Verifies the folder named in `arguments`, perhaps its kind. All it says goes to stderr."""
    if len(arguments) not in (1, 2):
        raise UserError("Expected `python3 -m preference_core.artefacts.manifest FOLDER [KIND]`")
    manifest = verify(Path(arguments[0]), kind=arguments[1] if len(arguments) == 2 else None)
    sys.stderr.write(f"{arguments[0]}: {len(manifest.files)} files are what their manifest says\n")


if __name__ == "__main__":
    run_command(main)
