"""What takes part in making an artefact's bytes, and in judging them: packages, and this project's own source."""

from functools import cache
from pathlib import Path

import preference_core
import preference_export
from preference_core.artefacts.artefact import versions_of
from preference_core.artefacts.manifest import fingerprint, sha256_of

PACKAGES = ("onnx-ir", "onnxscript", "peft", "safetensors", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions by package; this one's own includes a hash of its source and of the contract's."""
    return {
        "preference-export": f"{preference_export.__version__}+{_source_hash()}",
        **versions_of(*PACKAGES),
    }


@cache
def _source_hash() -> str:
    roots = [Path(str(package.__file__)).parent for package in (preference_export, preference_core)]
    modules = [(root.parent, module) for root in roots for module in sorted(root.rglob("*.py"))]
    return fingerprint({module.relative_to(folder).as_posix(): sha256_of(module) for folder, module in modules})[:12]
