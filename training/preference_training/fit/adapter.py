"""What decides a member's adapter, and whether the one that is there is still the right one.

Apart from `fit`, so that an adapter that is up to date costs no import of torch.
"""

from pathlib import Path
from typing import Any

from preference_core.artefacts.artefact import versions_of
from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import ConfigError
from preference_core.structure import plain
from preference_training.fit.recipe import recipe_of
from preference_training.stages import Stage, content_of

#: Raise this when the code changes what a recipe means.
FIT_VERSION = 3


def adapter_stage(config: Config, member: Classifier) -> Stage:
    """The folder of a member's adapter, made from its recipe, its base, the battles and how they are read."""
    if not isinstance(member.adapter, str) or member.adapter_revision is not None:
        absent = "is a list" if member.adapter else "is missing"
        given = "has a revision on the hub" if member.adapter_revision else absent
        raise ConfigError(
            f"`adapter` of `{member.name}` {given}, expected a folder to write to",
            hint=f"Set it to `{config.folders.adapter(member.name)}`.",
        )
    on_hub = member.base_location.is_on_hub()
    base: Any = [member.base, member.revision] if on_hub else content_of(Path(member.base))
    recipe = plain(recipe_of(member))
    if not recipe["zero_head"]:
        del recipe["zero_head"]  # Newer than adapters that are still up to date.
    files = {"train": train_file(config), "validation": config.data.validation}
    made_from = {
        "code": FIT_VERSION,
        "base": {"name": member.base, "content": base},
        "labels": list(config.labels),
        "reading": [plain(member.template), member.max_tokens, plain(member.truncation)],
        "recipe": recipe,
        "battles": {part: content_of(Path(file)) for part, file in files.items() if file},
    }
    return Stage(Path(member.adapter), "adapter", made_from, versions_of("peft", "torch", "transformers"))


def train_file(config: Config) -> str:
    """The file of the battles to train on; `ConfigError` when the configuration names none."""
    if config.data.train is None:
        raise ConfigError("There is nothing to train on: `data.train` is missing")
    return config.data.train
