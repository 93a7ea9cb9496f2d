"""The manifest: what an artefact is, what it was made from, and the SHA-256 of every file in it.

A manifest lies beside the files it lists. Whoever is about to load or run them verifies them first; this module only
hashes and compares, and does not know what the files mean. `python3 -m preference_core.manifest FOLDER` does so.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preference_core.errors import ArtefactError, PreferenceError, SystemFailure, describe
from preference_core.structure import plain, structure

FILE_NAME = "manifest.json"
PART_NAME = f".{FILE_NAME}.part"
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`kind` says what the folder holds; `files` maps relative POSIX paths to their records.

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


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-like value in canonical form: equal content, equal fingerprint."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def files_below(folder: Path) -> list[Path]:
    """Every regular file below `folder` but its manifest, sorted. Links are refused: they may lead outside.

    What a writer of the manifest left that was killed is none of the artefact's files.
    """
    found = []
    own = (folder / FILE_NAME, folder / PART_NAME)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArtefactError(f"`{path}` is a symbolic link", hint="Artefacts hold regular files only; copy it.")
        if path.is_file() and path not in own and "__pycache__" not in path.parts:
            found.append(path)
    return found


def write_manifest(
    folder: Path,
    kind: str,
    *,
    made_from: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    parity: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    known_hashes: Mapping[str, str] | None = None,
) -> Manifest:
    """Records every file below `folder` and writes its manifest, atomically. `SystemFailure` if the disk is full.

    `known_hashes` (relative POSIX path to SHA-256) spares reading large files again that were hashed while written.
    """
    known = known_hashes or {}
    files = {}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = FileRecord(bytes=path.stat().st_size, sha256=known.get(name) or sha256_of(path))
    manifest = Manifest(kind, files, made_from or {}, versions or {}, parity or {}, details or {})
    temporary = folder / PART_NAME
    try:
        temporary.write_text(json.dumps(plain(manifest), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, folder / FILE_NAME)
    except OSError as error:
        raise SystemFailure(f"`{folder / FILE_NAME}` cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return manifest


def amend_manifest(
    folder: Path,
    manifest: Manifest,
    *,
    parity: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Writes `manifest` of `folder` again, with another `parity` or other `details`. Its files are not hashed again."""
    write_manifest(
        folder,
        manifest.kind,
        made_from=manifest.made_from,
        versions=manifest.versions,
        parity=manifest.parity if parity is None else parity,
        details=manifest.details if details is None else details,
        known_hashes={name: record.sha256 for name, record in manifest.files.items()},
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; `ArtefactError` when there is none or it is not readable."""
    path = folder / FILE_NAME
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        manifest = structure(Manifest, table)
    except FileNotFoundError:
        raise ArtefactError(f"`{folder}` has no {FILE_NAME}", hint="Make it with `preference-export`.") from None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"`{path}` cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise ArtefactError(f"`{path}` has format {manifest.format}, this version reads {FORMAT}")
    return manifest


def verify(folder: Path, *, below: str = "", report: Callable[[str, int], None] | None = None) -> Manifest:
    """Checks every file of `folder` (or of its sub-folder `below`) against the manifest; returns the manifest.

    Raises `ArtefactError` naming the first file that is missing, changed or unlisted. `report(name, bytes)` is called
    after each file, for progress bars.
    """
    manifest = read_manifest(folder)
    listed = {name: record for name, record in manifest.files.items() if _is_below(name, below)}
    present = {path.relative_to(folder).as_posix(): path for path in files_below(folder / below if below else folder)}
    hint = "Export it again; do not serve files that were changed by hand."
    for name in sorted(present.keys() - listed.keys()):
        raise ArtefactError(f"`{folder / name}` is not in the manifest", hint=hint)
    for name, record in sorted(listed.items()):
        if name not in present:
            raise ArtefactError(f"`{folder / name}` is missing", hint=hint)
        size = present[name].stat().st_size
        if size != record.bytes:
            raise ArtefactError(f"`{folder / name}` has {size} bytes, its manifest says {record.bytes}", hint=hint)
        digest = sha256_of(present[name])
        if digest != record.sha256:
            raise ArtefactError(
                f"`{folder / name}` was changed: its SHA-256 is {digest}, its manifest says {record.sha256}", hint=hint
            )
        if report is not None:
            report(name, size)
    return manifest


def _is_below(name: str, below: str) -> bool:
    return not below or name.startswith(below.rstrip("/") + "/")


def main(arguments: Sequence[str]) -> int:
    """Verifies the one folder named in `arguments`; returns the exit code. Everything it says goes to stderr."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python3 -m preference_core.manifest FOLDER\n")
        return 2
    try:
        manifest = verify(Path(arguments[0]))
    except PreferenceError as error:
        sys.stderr.write(f"{describe(error)}\n")
        return error.exit_code
    sys.stderr.write(f"{arguments[0]}: {len(manifest.files)} files are what their manifest says\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
