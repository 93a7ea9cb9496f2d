"""What the launcher must know of a model repository before it is served: its models, and how many processes they take.

Reads `config.pbtxt` only as far as that; whether a configuration is valid is for Triton to say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from preference_core.artefacts.contents import read_regular
from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import ArtefactError
from preference_core.tensors import release

_COMMENT = re.compile(r"#.*")
_COUNT = re.compile(r"\bcount\s*:\s*(\d+)")
_ENSEMBLE = re.compile(r"""\bplatform\s*:\s*["']ensemble["']""")


@dataclass(frozen=True)
class ServedModel:
    """A model's name and the number of its instances, each of which is a process; 0 for an ensemble."""

    name: str
    instances: int


def models_of(repository: Path) -> tuple[ServedModel, ...]:
    """The models of a repository, sorted by name. Raises `ArtefactError` when there is none."""
    hint = "Make it with `preference-export all CONFIG`."
    if not repository.is_dir():
        raise ArtefactError(f"There is no model repository `{repository}`", hint=hint)
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise ArtefactError(f"`{repository}` holds no model: no folder in it has a config.pbtxt", hint=hint)
    return tuple(ServedModel(path.parent.name, _instances(_text_of(path))) for path in configs)


def ensembles_of(models: Sequence[ServedModel]) -> tuple[str, ...]:
    """Names of the ensembles, the only models that are for clients."""
    return tuple(model.name for model in models if model.instances == 0)


def release_of(repository: Path) -> str:
    """Which ensemble a repository holds, with its version and content; "" if its manifest does not say."""
    try:
        manifest = read_manifest(repository)
    except ArtefactError:
        return ""
    name, version = (str(manifest.details.get(key, "")) for key in ("ensemble", "version"))
    return release(name, version, str(manifest.made_from.get("content", ""))) if name and version else ""


def _text_of(config: Path) -> str:
    try:
        return read_regular(config).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"`{config}` cannot be read: {error}") from error


def _instances(config: str) -> int:
    text = _COMMENT.sub("", config)
    if _ENSEMBLE.search(text):
        return 0
    _, group, after = text.partition("instance_group")
    counts = [int(count) for count in _COUNT.findall(after)] if group else []
    return max(1, sum(counts))
