"""Files and folders that appear whole or not at all: written beside their place, then renamed into it.

Whatever ends the writing, what was there before stays. It does not know what they hold.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preference_core.errors import SystemFailure, UserError

#: The file in an unfinished folder that says what it is being made from, where it may be resumed.
BEGUN = ".begun"
LARGEST_COPY_BYTES = 64 * 2**20


@contextmanager
def replaced_file(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Gives the name of a hidden sibling to be written (`part`, or one of this process's own), which becomes `path`.

    After an exception `path` stays as it was. `SystemFailure` if the file system fails.
    """
    target = path.resolve()
    part = part or target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with written_beside(path):
            yield part
            put_in_place(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def written_beside(path: Path) -> Iterator[None]:
    """Inside, what will become `path` is written: a file system that fails is a `SystemFailure`."""
    try:
        yield
    except OSError as error:
        raise SystemFailure(
            f"`{path}` cannot be written: {error}", hint="What was there before is unchanged."
        ) from error


def put_in_place(part: Path, path: Path) -> None:
    """A finished file takes the place of `path`, and is there even after a failure of power."""
    through_to_disk(part)
    os.replace(part, path)


def through_to_disk(path: Path) -> None:
    """Makes sure that a file outlives a failure of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def replaced_folder(target: Path, keep_as: Path | None = None, resume: str | None = None) -> Iterator[Path]:
    """Gives a folder to fill; when the block ends well it becomes `target`, else it is removed.

    What `target` held before is kept at `keep_as` (in place of what that held), or removed. Killed at any moment, it
    leaves at `target` either the old folder, the new one, or, between two renames, none: never a part of one.
    The folder is empty, unless `resume` says that what an unfinished block with the same text left is to go on with.
    Raises `UserError` while another process fills it, and `SystemFailure` if the file system fails.
    """
    part = _beside(target, "part")
    begun = part / BEGUN
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _held(part, target):
            remove_remains(target)
            try:
                if resume is None or not begun.is_file() or begun.read_text(encoding="utf-8") != resume:
                    for path in part.iterdir():
                        _remove(path)
                if resume is not None:
                    begun.write_text(resume, encoding="utf-8")
                yield part
                begun.unlink(missing_ok=True)
                _put_in_place(part, target, keep_as)
            except BaseException:
                if resume is None:
                    _remove(part)
                raise
    except OSError as error:
        if error.errno is None:
            raise
        hint = "Free space there and run it again." if error.errno == errno.ENOSPC else None
        raise SystemFailure(f"`{target}` could not be written: {error}", hint) from error


@contextmanager
def _held(part: Path, target: Path) -> Iterator[None]:
    """Makes the folder `part`, if it is not there, and keeps other runs from it, where the file system has locks."""
    while True:
        part.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # Another run may rename or remove it at any moment.
            descriptor = os.open(part, os.O_RDONLY)
            try:
                _lock(descriptor, target)
                if os.path.samestat(os.fstat(descriptor), part.stat()):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"Another run is writing `{target}`", hint="Wait until it has ended, or stop it.") from error
    except OSError:
        pass  # This file system has no locks.


def remove_remains(target: Path) -> None:
    """Removes what `replaced_folder` had still to remove when it was killed after its first rename."""
    _remove(_beside(target, "old"))


def exchange(one: Path, other: Path) -> None:
    """Two folders trade places; `one` need not exist. What a killed exchange left is put right by `end_exchange`."""
    end_exchange(one, other)
    aside = _beside(one, "exchange")
    if one.exists():
        os.rename(one, aside)
    os.rename(other, one)
    if aside.exists():
        os.rename(aside, other)


def end_exchange(one: Path, other: Path) -> None:
    """Where `exchange` was killed between two renames: undoes the first one, or does the last one."""
    aside = _beside(one, "exchange")
    if aside.exists():
        os.rename(aside, other if one.exists() else one)


def link_or_copy(source: Path, target: Path) -> None:
    """Copies a finished file. One above `LARGEST_COPY_BYTES` gets a second name instead, where the file system can.

    Who edits one name of a file edits all; weights are not edited, and cost the disk they are on twice.
    """
    try:
        if source.stat().st_size > LARGEST_COPY_BYTES:
            os.link(source, target)
            return
    except OSError:
        pass
    shutil.copyfile(source, target)


def _put_in_place(new: Path, target: Path, keep_as: Path | None) -> None:
    if not target.exists():
        os.rename(new, target)
        return
    old = keep_as or _beside(target, "old")
    _remove(old)
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    if keep_as is None:
        _remove(old)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
