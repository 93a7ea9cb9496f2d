"""The measured ranges of a member's activations: what they were measured on, and whether they may be used.

`original.calibration` measures them.
"""

from typing import Any

from preference_core.artefacts.manifest import Manifest, verify
from preference_core.ensemble.settings import Member
from preference_core.errors import ArtefactError
from preference_core.structure import plain
from preference_export.checkpoint.job import Job

KIND = "calibration"


def calibration_of(job: Job[Member]) -> Manifest:
    """The manifest of a member's ranges.

    `ArtefactError` when there are none, or they are of other files of base and adapters, or of other settings.
    """
    if KIND in job.made:
        return job.made[KIND]
    if not job.calibration.is_dir():
        raise ArtefactError(
            f"Member `{job.member.name}` is not calibrated: there is no `{job.calibration}`",
            hint="Run `preference-export calibrate` (or `all`) with this configuration.",
        )
    manifest = verify(job.calibration)
    for key, now in (("settings", calibration_settings(job.member)), ("inputs", job.inputs)):
        if manifest.made_from.get(key) != now:
            what = "settings" if key == "settings" else "files of `base` and `adapter`"
            raise ArtefactError(
                f"Member `{job.member.name}` was calibrated with other {what} than there are now: `{job.calibration}`",
                hint="Run `preference-export calibrate` (or `all`) with this configuration.",
            )
    job.made[KIND] = manifest
    return manifest


def calibration_settings(member: Member) -> dict[str, Any]:
    """The part of a member's configuration that decides what its ranges are measured on."""
    return {key: plain(getattr(member, key)) for key in ("template", "max_tokens", "truncation", "base_rounding")}
