"""Run by the interpreter of the server's environment (`python -I probe.py`): prints what the launcher must know of it.

Imports the standard library only, and none of the packages it reports on.
"""

import importlib.metadata
import importlib.util
import json
import os
import site
import sys
import sysconfig


def version_of(package: str) -> str | None:
    """Version of an installed distribution, None when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, object]:
    """The fields of `preference_embedded.machine.ServerPython`, ready for JSON."""
    ours = (importlib.util.find_spec(name) for name in ("preference_core", "preference_embedded"))
    pytriton = importlib.util.find_spec("pytriton")
    return {
        "version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "numpy": version_of("numpy"),
        "bundle": next(iter(pytriton.submodule_search_locations or ()), None) if pytriton else None,
        "home": os.path.dirname(os.path.realpath(getattr(sys, "_base_executable", sys.executable))),
        "packages": site.getsitepackages(),
        "sources": [folder for spec in ours if spec for folder in spec.submodule_search_locations or ()],
        "library_folders": [str(sysconfig.get_config_var("LIBDIR")), f"{sys.base_prefix}/lib"],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(facts()))
