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
    """`made_from` is all that decides the content of `folder`; `versions` are those of the packages that decide it.

    `details` are those that its manifest must have to be current, with their values (`...`: any).
    """

    folder: Path
    kind: str
    made_from: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def current(self) -> Manifest | None:
        """The manifest, where the folder is whole and was made from the same by the same; None where it is to be made.

        What the manifest says of other packages does not count.
        """
        remove_remains(self.folder)
        state = self.state()
        return state if isinstance(state, Manifest) else None

    def state(self) -> Manifest | str:
        """The manifest of a `current` artefact, else why it is to be made. Nothing is written."""
        try:
            manifest = read_manifest(self.folder)
            made_by = {package: manifest.versions.get(package, "none") for package in self.versions}
            reasons = [
                *([] if manifest.kind == self.kind else [f"it is of the kind `{manifest.kind}`"]),
                *changes(manifest.made_from, plain(self.made_from)),
                *(f"{name} was {made_by[name]}" for name, now in self.versions.items() if made_by[name] != now),
                *(f"`{name}` changed" for name, value in self.details.items() if not _has(manifest, name, value)),
            ]
            return "; ".join(reasons) if reasons else verify(self.folder)
        except ArtefactError as error:
            return error.message

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
            manifest = Manifest(self.kind, {}, self.made_from, self.versions, parity or {}, draft.details)
            draft.manifest = write_manifest(folder, manifest, draft.known_hashes)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two tables: a few words for each key, with the keys below it that differ."""
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key, ...), new.get(key, ...)
        if was != now:
            tables = isinstance(was, dict) and isinstance(now, dict)
            inner = sorted(name for name in {*was, *now} if was.get(name, ...) != now.get(name, ...)) if tables else ()
            yield f"`{key}` changed" + (f" ({', '.join(inner)})" if inner else "")


def _has(manifest: Manifest, detail: str, value: Any) -> bool:
    return detail in manifest.details and value in (..., manifest.details[detail])
