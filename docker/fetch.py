"""Fetches the model repository that REPOSITORY_URL names into a folder, and verifies it; for an init container.

The archive is a tar file (also gzip, bzip2 or xz) of the repository's contents. It is unpacked while it is read, so
that it needs no room of its own; what was unpacked is removed unless the whole archive has the SHA-256
REPOSITORY_SHA256.
"""

import hashlib
import lzma
import os
import shutil
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import IO

from preference_core.artefacts.manifest import verify
from preference_core.command import run_command
from preference_core.errors import ArtefactError, ConfigError, SystemFailure

CHUNK_BYTES = 2**20
TIMEOUT_S = 60.0


class Hashing:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.hash = stream, hashlib.sha256()

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        data = self.stream.read(size)
        self.hash.update(data)
        return data


def fetch(url: str, sha256: str, folder: Path) -> int:
    """Fills the empty `folder`; returns how many files the repository has."""
    _empty(folder)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            stream = Hashing(response)
            with tarfile.open(mode="r|*", fileobj=stream) as archive:  # type: ignore[call-overload]
                archive.extractall(folder, filter="data")
            while stream.read():
                pass
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        _empty(folder)
        raise SystemFailure(f"The repository could not be fetched: {error}", "Check REPOSITORY_URL.") from error
    found = stream.hash.hexdigest()
    if found != sha256:
        _empty(folder)
        raise ArtefactError(
            f"The archive has the SHA-256 {found}, REPOSITORY_SHA256 is {sha256}",
            "Set REPOSITORY_SHA256 to what `sha256sum` says of the archive that you uploaded.",
        )
    return len(verify(folder, kind="repository").files)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ConfigError(f"The environment has no `{name}`")
    return os.environ[name]


def main(arguments: list[str]) -> None:
    """Runs with the variables of the environment."""
    files = fetch(_variable("REPOSITORY_URL"), _variable("REPOSITORY_SHA256"), Path(arguments[0]))
    sys.stderr.write(f"{arguments[0]}: {files} files are what their manifest says\n")


if __name__ == "__main__":
    run_command(main)
