"""An artefact: a folder with a manifest, what it is made from and by, whether it is current, and how it is made.

It does not know what the folder holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from preference_core.artefacts.manifest import Manifest, fingerprint, read_manifest, verify, write_manifest
from preference_core.artefacts.replacement import BEGUN, remove_remains, replaced_folder
from preference_core.errors import ArtefactError
from preference_core.structure import plain


def versions_of(*packages: str) -> dict[str, str]:
    """The installed version of each distribution."""
    return {package: version(package) for package in packages}


@dataclass
class Draft:
    """An artefact that is being made: its `folder` is to be filled, `details` are what its manifest will say of it.

    `known_hashes` are those of files that were hashed while they were written; `manifest` is set when it is in place.
    """

    folder: Path
    details: dict[str, Any] = field(default_factory=dict)
    known_hashes: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest = field(init=False)


@dataclass(frozen=True)
class Artefact:
    """`made_from` is all that decides the content of `folder`; `versions` are those of the packages that decide it."""

    folder: Path
    kind: str
    made_from: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)

    def current(self, *details: str) -> Manifest | None:
        """The manifest, where the folder is whole and was made from the same by the same; None where it is to be made.

        What the manifest says of other packages does not count. `details` are those that it must have.
        """
        remove_remains(self.folder)
        try:
            manifest = read_manifest(self.folder)
            made_by = {package: manifest.versions.get(package) for package in self.versions}
            found = (manifest.kind, manifest.made_from, made_by)
            same = (
                found == (self.kind, plain(self.made_from), self.versions) and set(details) <= manifest.details.keys()
            )
            return verify(self.folder) if same else None
        except ArtefactError:
            return None

    @contextmanager
    def draft(
        self, *, keep_as: Path | None = None, resumable: bool = False, parity: Mapping[str, Any] | None = None
    ) -> Iterator[Draft]:
        """Gives a folder to fill; when the block ends well it gets its manifest and takes its place.

        With `resumable` it may hold what a run that was made from the same, and did not end, left in it. `keep_as` is
        where the folder that was there before is kept.
        """
        origin = fingerprint((self.made_from, self.versions)) if resumable else None
        with replaced_folder(self.folder, keep_as, origin) as folder:
            draft = Draft(folder)
            yield draft
            (folder / BEGUN).unlink(missing_ok=True)
            draft.manifest = write_manifest(
                folder,
                self.kind,
                made_from=self.made_from,
                versions=self.versions,
                parity=parity,
                details=draft.details,
                known_hashes=draft.known_hashes,
            )
