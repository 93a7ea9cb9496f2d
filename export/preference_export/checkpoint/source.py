"""Where base and adapters of a member are on this machine, and what identifies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from preference_core.artefacts.manifest import Manifest, sha256s_of
from preference_core.battles.lengths import LENGTHS_FILE
from preference_core.ensemble.locations import Checkpoint
from preference_core.ensemble.settings import Member
from preference_core.errors import ArtefactError

T = TypeVar("T")

INPUT_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    LENGTHS_FILE,
)


@dataclass(frozen=True)
class Source:
    """Where the weights of a member are on this machine."""

    base: Checkpoint
    adapters: tuple[Checkpoint, ...]


def source_of(member: Member, *, offline: bool = False) -> Source:
    """Finds base and adapters, or fetches them unless `offline`."""
    base, *adapters = (
        location.fetched(offline=offline) for location in (member.base_location, *member.adapter_locations)
    )
    return Source(base, tuple(adapters))


def roles_of(source: Source) -> dict[str, Checkpoint]:
    """Base and adapters by the names that they have in a manifest."""
    return _named(source.base, source.adapters)


def origins_of(source: Source) -> dict[str, Any]:
    """Hub ids, the revisions that were asked for and the commits these were, by role; folders are left out."""
    return {
        role: {"hub_id": checkpoint.origin, "revision": checkpoint.revision, "commit": checkpoint.commit}
        for role, checkpoint in roles_of(source).items()
        if checkpoint.commit is not None
    }


def check_made_from(member: Member, exported: Manifest) -> None:
    """Raises `ArtefactError` unless `exported` was made from what `member` names now.

    Folders are compared by content where they are on this machine; hub ids by name and revision, without the network.
    """
    inputs = exported.made_from.get("inputs") or {}
    named = _named(member.base_location, member.adapter_locations)
    if inputs.keys() != named.keys():
        raise _other(member, f"{', '.join(sorted(inputs))}; the configuration names {', '.join(sorted(named))}")
    for role, location in named.items():
        origin, revision = exported.details.get(role), location.revision
        if Path(location.name).is_dir():
            if inputs[role] != _hashes(Path(location.name)):
                raise _other(member, f"other files than `{location.name}` ({role}) holds now")
        elif revision is None and origin is None:
            continue  # a folder of the machine that exported
        elif not isinstance(origin, dict):
            raise _other(member, f"a folder; `{role}` is `{location.name}` at `{revision}` now")
        elif origin.get("hub_id") != location.name or revision not in (origin.get("revision"), origin.get("commit")):
            was = f"`{origin.get('hub_id')}` at `{origin.get('revision')}`"
            raise _other(member, f"{was}; `{role}` is `{location.name}` at `{revision}` now")


def _other(member: Member, what: str) -> ArtefactError:
    return ArtefactError(
        f"`{member.name}` was exported from {what}", hint="Run `preference-export all` with this configuration."
    )


def input_hashes(source: Source) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of base and adapters that can change the result."""
    return {role: _hashes(checkpoint.folder) for role, checkpoint in roles_of(source).items()}


def _hashes(folder: Path) -> dict[str, str]:
    paths = sorted({path for pattern in INPUT_PATTERNS for path in folder.glob(pattern)})
    return dict(zip((path.name for path in paths), sha256s_of(paths), strict=True))


def _named(base: T, adapters: Sequence[T]) -> dict[str, T]:
    if len(adapters) == 1:
        return {"base": base, "adapter": adapters[0]}
    return {"base": base, **{f"adapter {n}": adapter for n, adapter in enumerate(adapters, 1)}}
