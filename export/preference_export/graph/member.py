"""The exported member in `build/NAME/members/MEMBER`: what it is made from, and whether it has to be made again.

How it is made is for its kind (`Job.fill`).
"""

from dataclasses import replace

from preference_core.artefacts.artefact import Artefact, Draft
from preference_core.artefacts.manifest import Manifest, verify, write_manifest
from preference_core.ensemble.settings import Member
from preference_core.errors import ArtefactError
from preference_core.progress import BytesDone
from preference_export.artefacts.names import MODEL_FILE, RANGES_FILE, WEIGHT_BYTES
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.job import Job, Started
from preference_export.checkpoint.source import origins_of
from preference_export.graph.external_data import check_external_data
from preference_export.graph.precision import dtypes_of
from preference_export.graph.ranges import calibration_of

KIND = "member"


def export_member(job: Job[Member], started: Started, report: BytesDone) -> bool:
    """Makes the member's artefact; False when it was there, made from the same inputs.

    `started` is told the number of bytes to come, `report` those written.
    """

    def fill(draft: Draft) -> None:
        job.fill(draft, started, report)
        draft.details |= origins_of(job.source)

    made = job.make(artefact_of(job), fill)
    if not made:
        check_external_data(job.exported / MODEL_FILE)
        job.made[KIND] = _with_origins(job, job.made[KIND])
    return made


def artefact_of(job: Job[Member]) -> Artefact:
    """The member's artefact as it would be made now."""
    calibration = calibration_of(job).files[RANGES_FILE] if dtypes_of(job.member).calibrated else None
    origin = {"sha256": calibration.sha256} if calibration else None
    made_from = {"settings": job.settings, "inputs": job.inputs, "calibration": origin}
    return Artefact(job.exported, KIND, made_from, versions(), {WEIGHT_BYTES: ...})


def exported_member(job: Job[Member]) -> Manifest:
    """The manifest of an exported member that is unchanged and of these settings."""
    if KIND not in job.made:
        manifest = verify(job.exported)
        if manifest.made_from.get("settings") != job.settings:
            raise ArtefactError(
                f"`{job.exported}` was exported with other settings than the configuration has now",
                hint="Run `preference-export all` with this configuration.",
            )
        check_external_data(job.exported / MODEL_FILE)
        job.made[KIND] = manifest
    return job.made[KIND]


def _with_origins(job: Job[Member], manifest: Manifest) -> Manifest:
    """Another revision may hold the same files: then only what the manifest says of it changes."""
    kept = {key: value for key, value in manifest.details.items() if key not in manifest.made_from["inputs"]}
    details = {**kept, **origins_of(job.source)}
    return manifest if details == manifest.details else write_manifest(job.exported, replace(manifest, details=details))
