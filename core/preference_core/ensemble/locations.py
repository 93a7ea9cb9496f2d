"""Where a checkpoint is: a folder, or a repository of the Hugging Face hub at a pinned revision, which is fetched.

`huggingface_hub` is imported when it is needed. JSON files are read here; what they mean is not known.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.errors import CheckpointError, SystemFailure

#: What is fetched: no pickled weights, no code.
DOWNLOADED = ("*.json", "*.safetensors")
#: What PEFT calls the file of an adapter's weights, and Transformers the tensor of a classifier's head.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD = "score.weight"
#: What writes the folder, by role.
WRITTEN_BY = {
    "base": "`preference-train generate CONFIG` writes tiny bases, `fit` length buckets. ",
    "adapter": "`preference-train fit CONFIG` writes the folder. ",
}

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(location: str) -> bool:
    """Whether `location` names a hub repository (`organisation/name`): an existing folder always wins."""
    return not Path(location).exists() and _HUB_ID.fullmatch(location) is not None


@dataclass(frozen=True)
class Checkpoint:
    """A local folder; `origin` is what the configuration calls it.

    One that was fetched has the `revision` that was asked for, and the hub's `commit` that this was.
    """

    folder: Path
    origin: str
    revision: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Location:
    """What `base` or `adapter` of a member names."""

    member: str
    role: Literal["base", "adapter"]
    name: str
    revision: str | None = None

    def is_on_hub(self) -> bool:
        """Whether it is a hub id, else it is a folder. Raises `CheckpointError` where it is neither.

        A hub id needs a revision, so that the same configuration always means the same weights; a folder has none.
        """
        key = "revision" if self.role == "base" else f"{self.role}_revision"
        owner, written_by = f"`{self.role}` of `{self.member}`", WRITTEN_BY[self.role]
        if Path(self.name).is_dir():
            if self.revision is not None:
                raise CheckpointError(f"{owner} is the folder `{self.name}`, which has no `{key}`", f"Remove `{key}`.")
            return False
        if not is_hub_id(self.name):
            raise CheckpointError(
                f"{owner} is `{self.name}`, which is neither a folder nor a hub id",
                hint=f"{written_by}Folders are relative to the working directory, a hub id is `organisation/name`.",
            )
        if self.revision is None:
            raise CheckpointError(
                f"{owner} is `{self.name}`: there is no such folder, and a hub id needs `{key}`",
                hint=f"{written_by}Pin a hub id: `{key} = ...`, the commit shown on its page.",
            )
        return True

    def fetched(self, files: Sequence[str] = DOWNLOADED, *, offline: bool = False) -> Checkpoint:
        """The folder, fetched if it is on the hub (or, `offline`, found in its cache): only `files`, patterns of names.

        `huggingface_hub` reads the token for gated repositories from the environment; it is never written anywhere.
        """
        if not self.is_on_hub():
            return Checkpoint(Path(self.name), self.name)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        try:
            patterns = list(files)
            folder = Path(
                snapshot_download(self.name, revision=self.revision, allow_patterns=patterns, local_files_only=offline)
            )
        except GatedRepoError as error:
            raise CheckpointError(
                f"`{self.name}` is gated on the hub", hint="Accept its licence there, then set HF_TOKEN to your token."
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"The hub has no `{self.name}` (or it is private)", hint="Check the name; set HF_TOKEN."
            ) from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            raise SystemFailure(f"`{self.name}` at `{self.revision}` could not be fetched: {reason}") from error
        return Checkpoint(folder, self.name, self.revision, folder.name)

    def folder_with(self, *files: str) -> Path | None:
        """The folder, or that in the hub's cache, if it has `files`: nothing is fetched."""
        folder = Path(self.name)
        if is_hub_id(self.name) and self.revision is not None:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self.name, files[0], revision=self.revision)
            folder = Path(cached).parent if isinstance(cached, str) else folder
        return folder if all((folder / file).is_file() for file in files) else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint; `CheckpointError` when it is missing or not one."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file `{path}`") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}", pull_hint(path)) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"`{path}` holds {type(table).__name__}, expected an object")
    return table
