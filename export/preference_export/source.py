"""Where base and adapters of a member are on this machine, and what identifies them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preference_core.lengths import LENGTHS_FILE
from preference_core.manifest import sha256_of
from preference_core.settings import Member
from preference_export.checkpoint import Checkpoint, locate

INPUT_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
    "tokenizer*.json",
    LENGTHS_FILE,
)


@dataclass(frozen=True)
class Source:
    """Where the weights of a member are on this machine."""

    base: Checkpoint
    adapters: tuple[Checkpoint, ...]


def source_of(member: Member) -> Source:
    """Finds (or fetches) base and adapters."""
    base = locate(member.base, member.revision)
    pinned = zip(member.adapters, member.adapter_revisions, strict=True)
    return Source(base, tuple(locate(location, revision, "adapter") for location, revision in pinned))


def is_here(member: Member) -> bool:
    """Whether base and adapters are folders of this machine."""
    return all(Path(location).is_dir() for location in (member.base, *member.adapters))


def roles_of(source: Source) -> dict[str, Checkpoint]:
    """Base and adapters by the names that they have in a manifest."""
    if len(source.adapters) == 1:
        return {"base": source.base, "adapter": source.adapters[0]}
    return {"base": source.base, **{f"adapter {n}": adapter for n, adapter in enumerate(source.adapters, 1)}}


def input_hashes(source: Source) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of base and adapters that can change the result."""
    hashes = {}
    with ThreadPoolExecutor() as pool:
        for role, checkpoint in roles_of(source).items():
            paths = sorted({path for pattern in INPUT_PATTERNS for path in checkpoint.folder.glob(pattern)})
            hashes[role] = dict(zip((path.name for path in paths), pool.map(sha256_of, paths), strict=True))
    return hashes
