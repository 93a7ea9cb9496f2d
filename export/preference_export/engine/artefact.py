"""The engine of a member: where it is, what it was built from, and whether it may be served.

`build/NAME/engines/MEMBER` holds `model.plan` with a manifest of its own; TensorRT's timing cache is beside it.
"""

from typing import Any

from preference_core.artefacts.artefact import Artefact
from preference_core.artefacts.manifest import Manifest, verify
from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import ArtefactError
from preference_core.progress import StepDone
from preference_core.structure import plain
from preference_export.artefacts.names import DATA_FILE, MODEL_FILE, PLAN_FILE
from preference_export.artefacts.versions import versions
from preference_export.engine.build import build_engine, gpu_architecture, profiles_of, tensorrt_module, use_gpu_of
from preference_export.graph.member import exported_member

KIND = "engine"
TIMING_CACHE = "timing.cache"


def build_member_engine(config: Config, member: Classifier, progress: StepDone) -> bool:
    """Builds the engine of an exported member; False when it was there, built here from the same graph."""
    trt = tensorrt_module()
    folder = config.folders.engine(member.name)
    made_from = _made_from(config, member, exported_member(config, member))
    use_gpu_of(member)
    artefact = Artefact(folder, KIND, made_from, {"tensorrt": str(trt.__version__), **versions()})
    current = artefact.current("warnings")
    if current is not None and current.details.get("gpu_architecture") == gpu_architecture():
        return False
    profiles = profiles_of(member.max_tokens, config.serving.max_batch_size)
    with artefact.draft() as draft:
        source = config.folders.exported(member.name) / MODEL_FILE
        cache = folder.parent / TIMING_CACHE
        warnings = build_engine(source, draft.folder / PLAN_FILE, profiles, member.build, cache, progress)
        draft.details |= {"gpu_architecture": gpu_architecture(), "profiles": plain(profiles), "warnings": warnings}
    return True


def built_engine(config: Config, member: Classifier) -> Manifest:
    """The manifest of an engine that is unchanged and was built from the member's graph as it is now."""
    folder = config.folders.engine(member.name)
    manifest = verify(folder)
    if manifest.made_from != _made_from(config, member, exported_member(config, member)):
        raise ArtefactError(
            f"`{folder}` was built from another graph or with other settings than there are now",
            hint="Run `preference-export engine` with this configuration.",
        )
    return manifest


def _made_from(config: Config, member: Classifier, exported: Manifest) -> dict[str, Any]:
    return {
        "files": {name: exported.files[name].sha256 for name in (MODEL_FILE, DATA_FILE)},
        "build": plain(member.build),
        "profiles": plain(profiles_of(member.max_tokens, config.serving.max_batch_size)),
    }
