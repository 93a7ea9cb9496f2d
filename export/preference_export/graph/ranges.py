"""The measured ranges of a member's activations: where they are, what they were measured on, and how they are read.

`original.calibration` measures them.
"""

from collections.abc import Mapping
from typing import Any

from safetensors.torch import load_file

from preference_core.artefacts.manifest import verify
from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import ArtefactError
from preference_core.structure import plain
from preference_export.graph.quantise import Ranges

KIND = "calibration"
RANGES_FILE = "calibration.safetensors"


def ranges_of(config: Config, member: Classifier, inputs: Mapping[str, Any]) -> tuple[Ranges, dict[str, Any]]:
    """The measured ranges of a member by GEMM, and what identifies them.

    `ArtefactError` when there are none, or they are of other files than `inputs` (hashes by role) or other settings.
    """
    folder = config.folders.calibration(member.name)
    if not folder.is_dir():
        raise ArtefactError(
            f"Member `{member.name}` is not calibrated: there is no `{folder}`",
            hint="Run `preference-export calibrate` (or `all`) with this configuration.",
        )
    manifest = verify(folder)
    for key, now in (("settings", calibration_settings(member)), ("inputs", inputs)):
        if manifest.made_from.get(key) != now:
            what = "settings" if key == "settings" else "files of `base` and `adapter`"
            raise ArtefactError(
                f"Member `{member.name}` was calibrated with other {what} than there are now: `{folder}`",
                hint="Run `preference-export calibrate` (or `all`) with this configuration.",
            )
    return load_file(folder / RANGES_FILE), {"sha256": manifest.files[RANGES_FILE].sha256}


def calibration_settings(member: Classifier) -> dict[str, Any]:
    """The part of a member's configuration that decides what its ranges are measured on."""
    return {key: plain(getattr(member, key)) for key in ("template", "max_tokens", "truncation", "base_rounding")}
