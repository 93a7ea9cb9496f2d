"""Tells files from the pointers that git leaves in their place where Git LFS is not set up."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def pull_hint(path: Path) -> str | None:
    """How to fix `path` if it is a pointer of Git LFS, else None."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_START)) == _START
    except OSError:
        return None
    return f"It is a pointer of Git LFS: run `git lfs pull` in `{path.parent}`." if is_pointer else None
