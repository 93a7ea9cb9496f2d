"""Folders that appear whole or not at all: written beside their place, then renamed into it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preference_core.errors import SystemFailure


@contextmanager
def replaced(target: Path, keep_as: Path | None = None) -> Iterator[Path]:
    """Gives an empty folder to fill; when the block ends well it becomes `target`, else it is removed.

    What `target` held before is kept at `keep_as` (in place of what that held), or removed. Killed at any moment, it
    leaves at `target` either the old folder, the new one, or, between two renames, none: never a part of one.
    """
    part = _beside(target, "part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_remains(target)
        _remove(part)
        part.mkdir()
        yield part
        put_in_place(part, target, keep_as)
    except OSError as error:
        _remove(part)
        hint = "Free space there and run it again." if error.errno == errno.ENOSPC else None
        raise SystemFailure(f"`{target}` could not be written: {error}", hint) from error
    except BaseException:
        _remove(part)
        raise


def put_in_place(new: Path, target: Path, keep_as: Path | None = None) -> None:
    """Renames `new` to `target`; what was there goes to `keep_as`, or away."""
    if target.exists():
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
    else:
        os.rename(new, target)


def remove_remains(target: Path) -> None:
    """Removes what `replaced` had still to remove when it was killed after its first rename."""
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
    """Gives a finished file a second name; copies it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
