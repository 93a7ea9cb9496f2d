"""The engine of a member: where it is, what it was built from, and whether it may be served.

`build/NAME/engines/MEMBER` holds `model.plan` with a manifest of its own; TensorRT's timing cache is beside it.
"""

from typing import Any

from preference_core.artefacts.artefact import Artefact, Draft
from preference_core.artefacts.manifest import Manifest, verify
from preference_core.ensemble.settings import Member
from preference_core.errors import ArtefactError
from preference_core.progress import StepDone
from preference_core.structure import plain
from preference_export.artefacts.names import DATA_FILE, MODEL_FILE, PLAN_FILE
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.job import Job
from preference_export.engine.profiles import profiles_of
from preference_export.engine.runtimes import gpu_architecture, tensorrt_module, use_gpu_of
from preference_export.graph.member import exported_member

KIND = "engine"
TIMING_CACHE = "timing.cache"


def build_member_engine(job: Job[Member], progress: StepDone) -> bool:
    """Builds the engine of an exported member; False when it was there, built here from the same graph."""

    def fill(draft: Draft) -> None:
        from preference_export.engine.build import build_engine

        member, profiles = job.member, profiles_of(job.member.max_tokens, job.config.serving.max_batch_size)
        use_gpu_of(member)
        cache = job.engine.parent / TIMING_CACHE
        source, target = job.exported / MODEL_FILE, draft.folder / PLAN_FILE
        warnings = build_engine(source, target, profiles, member.build, cache, progress)
        gpu = gpu_architecture(member)
        draft.details |= {"gpu_architecture": gpu, "profiles": plain(profiles), "warnings": warnings}

    return job.make(artefact_of(job), fill)


def artefact_of(job: Job[Member]) -> Artefact:
    """The engine as it would be built now."""
    made_by = {"tensorrt": tensorrt_module().__version__, **versions()}
    details = {"gpu_architecture": gpu_architecture(job.member), "warnings": ...}
    return Artefact(job.engine, KIND, _made_from(job), made_by, details)


def built_engine(job: Job[Member]) -> Manifest:
    """The manifest of an engine that is unchanged and was built from the member's graph as it is now."""
    if KIND not in job.made:
        manifest = verify(job.engine)
        if manifest.made_from != _made_from(job):
            raise ArtefactError(
                f"`{job.engine}` was built from another graph or with other settings than there are now",
                hint="Run `preference-export engine` with this configuration.",
            )
        job.made[KIND] = manifest
    return job.made[KIND]


def _made_from(job: Job[Member]) -> dict[str, Any]:
    exported = exported_member(job)
    return {
        "files": {name: exported.files[name].sha256 for name in (MODEL_FILE, DATA_FILE)},
        "build": plain(job.member.build),
        "profiles": plain(profiles_of(job.member.max_tokens, job.config.serving.max_batch_size)),
    }
