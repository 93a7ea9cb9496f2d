"""The calibration in `build/NAME/calibrations/MEMBER`: ranges of activations, measured on the sample battles.

One calibration serves all precisions. `activations` measures them, and is imported when there is something to measure.
"""

from importlib.metadata import PackageNotFoundError

from preference_core.artefacts.artefact import Artefact, Draft, versions_of
from preference_core.artefacts.manifest import sha256_of
from preference_core.ensemble.settings import Classifier, Member
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.job import Job
from preference_export.graph.ranges import KIND, calibration_settings
from preference_export.original.sample import sample_of


def calibrate_member(job: Job[Classifier]) -> bool:
    """Measures and writes the ranges of a member; False when they were there, made from the same inputs."""

    def fill(draft: Draft) -> None:
        from preference_export.original import activations

        activations.fill(draft, job)

    return job.make(artefact_of(job), fill)


def artefact_of(job: Job[Member]) -> Artefact:
    """The calibration as it would be made now."""
    sample = sha256_of(sample_of(job.config))
    made_from = {"settings": calibration_settings(job.member), "inputs": job.inputs, "sample": sample}
    return Artefact(job.calibration, KIND, made_from, {**_modelopt_version(), **versions()})


def _modelopt_version() -> dict[str, str]:
    """The installed version. Where there is none, ranges that were measured elsewhere still count."""
    try:
        return versions_of("nvidia-modelopt")
    except PackageNotFoundError:
        return {}
