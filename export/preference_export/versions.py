"""What takes part in making an artefact's bytes, and in judging them: packages, and this project's own source."""

from functools import cache
from importlib.metadata import version
from pathlib import Path

import preference_core
from preference_core.manifest import fingerprint, sha256_of
from preference_export import __version__

PACKAGES = ("onnx-ir", "onnxscript", "peft", "safetensors", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions by package; this one's own includes a hash of its source and of the contract's."""
    return {"preference-export": f"{__version__}+{_source_hash()}", **{name: version(name) for name in PACKAGES}}


@cache
def _source_hash() -> str:
    folders = (Path(__file__).parent, Path(preference_core.__file__).parent)
    modules = [module for folder in folders for module in sorted(folder.glob("*.py"))]
    return fingerprint({f"{module.parent.name}/{module.name}": sha256_of(module) for module in modules})[:12]
