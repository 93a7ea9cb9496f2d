"""What a folder holds: its files, its empty folders, and a seal that shows whether anything was touched since.

Whatever could lead outside, or block whoever reads it, is refused: an artefact holds regular files only. It knows
nothing of manifests.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from preference_core.errors import ArtefactError

#: Hints for what is in the way, `lost+found` of a file system among it.
STRAY_FOLDER = "Remove it; `lost+found` cannot be removed: use a folder below the root of that file system."
UNREADABLE = "Make it readable for the user that reads it; `lost+found` never is: use a folder beside it."


@dataclass(frozen=True)
class Contents:
    """Files and empty folders below a folder, sorted. Folders that hold something follow from their files."""

    files: tuple[Path, ...]
    empty_folders: tuple[Path, ...]


def contents_of(folder: Path) -> Contents:
    """Everything below `folder`. Raises `ArtefactError` for a link, pipe, socket or device, and what is unreadable."""
    files, empty = [], []
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        entries = list(_entries(current))
        if not entries and current != folder:
            empty.append(current)
        for path, mode in entries:
            if stat.S_ISDIR(mode):
                waiting.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                raise _irregular(path, mode)
    return Contents(tuple(sorted(files)), tuple(sorted(empty)))


def seal_of(folder: Path) -> Mapping[str, tuple[int, ...]]:
    """What the file system says of all contents of `folder`, read in milliseconds whatever their size.

    Equal seals mean that nothing was added, removed, replaced or written to in between: no program can set the time of
    a change (`st_ctime`).
    """
    contents = contents_of(folder)
    return {str(path): _state(path) for path in (*contents.files, *contents.empty_folders)}


def read_regular(path: Path) -> bytes:
    """The bytes of a file that must be a regular one: a pipe would block, a link may lead anywhere."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise _irregular(path, mode)
    return path.read_bytes()


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    if folder.is_symlink():
        raise _irregular(folder, folder.lstat().st_mode)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield folder / entry.name, entry.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArtefactError(f"`{folder}` cannot be read: {error.strerror}", hint=UNREADABLE) from error


def _state(path: Path) -> tuple[int, ...]:
    state = path.lstat()
    return state.st_dev, state.st_ino, state.st_mode, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _irregular(path: Path, mode: int) -> ArtefactError:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    kind = "a folder" if stat.S_ISDIR(mode) else kinds.get(stat.S_IFMT(mode), "a device")
    return ArtefactError(f"`{path}` is {kind}", hint="Artefacts hold regular files only; copy it, or remove it.")
