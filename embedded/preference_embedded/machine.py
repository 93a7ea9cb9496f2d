"""Can the bundled tritonserver run here? The facts of a machine, gathered once, and one check per precondition.

Each check takes the facts and raises one `ServerError` with a hint, so every one can be tested on any machine. Nothing
here starts a server or looks into a model repository.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from preference_core.errors import ServerError

#: What the binaries of `nvidia-pytriton==0.7.0` were built for.
ARCHITECTURE = "x86_64"
MINIMUM_GLIBC = (2, 35)
BUNDLE_REQUIREMENT = "nvidia-pytriton==0.7.0"

MIB = 1024 * 1024
#: Triton hands paths to a shell as they are.
_PLAIN = re.compile(r"[A-Za-z0-9_./+,:=@%^~-]+")
MULTIARCH_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True)
class ServerPython:
    """The environment in which Triton runs Python models: `folder` holds its `python3`, `version` is like `3.11`.

    `home` holds the interpreter that the environment was made with, `packages` are where its packages are, `sources`
    where this project's are, if not there.
    """

    folder: Path
    version: str
    numpy: str | None
    bundle: Path | None
    library_folders: tuple[Path, ...] = ()
    home: Path | None = None
    packages: tuple[Path, ...] = ()
    sources: tuple[Path, ...] = ()

    @property
    def library(self) -> str:
        """File name of the shared library of this Python version."""
        return f"libpython{self.version}.so.1.0"


@dataclass(frozen=True)
class Bundle:
    """Where the parts of the installed tritonserver are; `stub_versions` are the Python versions it has stubs for."""

    folder: Path

    @property
    def binary(self) -> Path:
        """The tritonserver executable."""
        return self.folder / "tritonserver/bin/tritonserver"

    @property
    def python_backend(self) -> Path:
        """The folder with the Python backend's shared library and utilities."""
        return self.folder / "tritonserver/backends/python"

    @property
    def libraries(self) -> Path:
        """The shared libraries that came with the wheel."""
        return self.folder.parent / "nvidia_pytriton.libs"

    @property
    def stub_versions(self) -> tuple[str, ...]:
        """Python versions (`3.11`) that the bundle has a stub for, oldest first."""
        stubs = self.folder / "tritonserver/python_backend_stubs"
        found = [path.parent.name for path in stubs.glob("*/triton_python_backend_stub")]
        return tuple(sorted(found, key=lambda version: [int(part) for part in version.split(".")]))

    def stub(self, version: str) -> Path:
        """The stub executable for one Python version."""
        return self.folder / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"


@dataclass(frozen=True)
class Machine:
    """Everything the preconditions are decided on. `glibc` is None where the C library is another one."""

    architecture: str
    glibc: tuple[int, ...] | None
    python: ServerPython
    bundle: Bundle | None
    libpython: Path | None
    shared_memory: Path
    shared_memory_free_bytes: int


def gather(python: Path, shared_memory: Path = Path("/dev/shm")) -> Machine:
    """The facts of this machine for the environment whose interpreter is `python` (symbolic links are kept)."""
    server_python = probe(python)
    bundle = server_python.bundle
    try:
        space = os.statvfs(shared_memory)
        free_bytes = space.f_bavail * space.f_frsize
    except OSError:
        free_bytes = 0
    return Machine(
        architecture=platform.machine(),
        glibc=glibc_version(),
        python=server_python,
        bundle=Bundle(bundle) if bundle is not None and Bundle(bundle).binary.is_file() else None,
        libpython=find_library(server_python.library, library_folders(server_python)),
        shared_memory=shared_memory,
        shared_memory_free_bytes=free_bytes,
    )


def probe(python: Path) -> ServerPython:
    """Asks an interpreter about its environment. Isolated, as Triton's stub is: `PYTHONPATH` does not count."""
    command = [str(python), "-I", str(Path(__file__).with_name("probe.py"))]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerError(
            f"The server's Python `{python}` does not run: {error}",
            hint="Name the interpreter of the server's environment with `--python`.",
        ) from error
    facts = json.loads(answer)
    return ServerPython(
        folder=python.absolute().parent,
        version=facts["version"],
        numpy=facts["numpy"],
        bundle=Path(facts["bundle"]) if facts["bundle"] else None,
        library_folders=tuple(map(Path, facts["library_folders"])),
        home=Path(facts["home"]),
        packages=tuple(map(Path, facts["packages"])),
        sources=tuple(map(Path, facts["sources"])),
    )


def glibc_version() -> tuple[int, ...] | None:
    """Version of the C library if it is glibc."""
    name, number = platform.libc_ver()
    return tuple(map(int, number.split(".")[:2])) if name == "glibc" else None


def library_folders(python: ServerPython) -> Iterable[Path]:
    """Where the shared library of `python` may be: with the interpreter itself, else where the loader looks."""
    yield from python.library_folders
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder)
    for ldconfig in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        if Path(ldconfig).exists():
            listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
            yield from (Path(line.split("=> ")[1]).parent for line in listed.splitlines() if python.library in line)
            break
    yield from map(Path, MULTIARCH_FOLDERS)


def find_library(name: str, folders: Iterable[Path]) -> Path | None:
    """The first folder's file called `name`."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def check(machine: Machine, shared_memory_bytes: int) -> None:
    """Raises `ServerError` for the first precondition that does not hold; `shared_memory_bytes` must be free."""
    check_architecture(machine)
    check_glibc(machine)
    check_bundle(machine)
    check_python_version(machine)
    check_numpy(machine)
    check_libpython(machine)
    check_paths(machine)
    check_shared_memory(machine, shared_memory_bytes)


def check_architecture(machine: Machine) -> None:
    """The bundled binaries run on one architecture only."""
    if machine.architecture != ARCHITECTURE:
        raise ServerError(
            f"The bundled tritonserver is built for {ARCHITECTURE}, this machine is {machine.architecture}",
            hint="Serve the repository with the container instead: `make up`.",
        )


def check_glibc(machine: Machine) -> None:
    """The bundled binaries need a recent glibc."""
    if machine.glibc is None or machine.glibc < MINIMUM_GLIBC:
        found = "another C library" if machine.glibc is None else "glibc {}.{}".format(*machine.glibc)
        raise ServerError(
            "The bundled tritonserver needs glibc {}.{} or later, this machine has {}".format(*MINIMUM_GLIBC, found),
            hint="Use Debian 12, Ubuntu 22.04 or later, or serve the repository with the container: `make up`.",
        )


def check_bundle(machine: Machine) -> None:
    """The wheel that carries the binaries must be installed in the server's environment."""
    if machine.bundle is None:
        python = machine.python.folder / "python3"
        raise ServerError(
            f"There is no tritonserver in the environment of `{python}`",
            hint=f"Install it with `{python} -m pip install --no-deps {BUNDLE_REQUIREMENT}`.",
        )


def check_python_version(machine: Machine) -> None:
    """There must be a stub for the Python version, and `python3` beside the interpreter, by which the stub finds it."""
    versions = machine.bundle.stub_versions if machine.bundle else ()
    if machine.python.version not in versions:
        raise ServerError(
            f"The bundled tritonserver cannot run models in Python {machine.python.version}",
            hint=f"Make the server's environment with Python {', '.join(versions)}.",
        )
    if not (machine.python.folder / "python3").exists():
        raise ServerError(
            f"`{machine.python.folder}` has no `python3`, by which Triton finds the environment",
            hint="Make the environment with `python3 -m venv`.",
        )


def check_numpy(machine: Machine) -> None:
    """The stubs read arrays by the memory layout of NumPy 1; under NumPy 2 every array is silently damaged."""
    numpy = machine.python.numpy
    if numpy is None or int(numpy.split(".")[0]) >= 2:
        found = "none is installed" if numpy is None else f"version {numpy} is installed"
        python = machine.python.folder / "python3"
        raise ServerError(
            f"The bundled Python backend needs NumPy 1 in the environment of `{python}`; {found}",
            hint=f"Run `{python} -m pip install 'numpy<2'`, or name another environment with `--python`.",
        )


def check_libpython(machine: Machine) -> None:
    """The stub is linked to the shared library of its Python version."""
    if machine.libpython is None:
        raise ServerError(
            f"`{machine.python.library}` was not found",
            hint=f"Install it (Debian, Ubuntu: `apt-get install libpython{machine.python.version}`), or use a Python "
            "that was built with `--enable-shared`.",
        )


def check_paths(machine: Machine) -> None:
    """The stub takes paths for ASCII, and the lists of folders that it is given are joined by colons."""
    found = (machine.bundle.folder if machine.bundle else None, machine.libpython)
    for path in (*machine.python.packages, *machine.python.sources, *filter(None, found)):
        odd = next((c for c in str(path) if not c.isascii() or c == ":"), None)
        if odd is not None:
            raise ServerError(
                f"Triton's Python models cannot be run from `{path}`: the path has the character `{odd}`",
                hint="Make the server's environment, or the checkout that it is of, in a folder without it.",
            )


def is_plain(path: Path | str) -> bool:
    """Whether a shell reads the path as it is."""
    return _PLAIN.fullmatch(str(path)) is not None


def check_shared_memory(machine: Machine, needed_bytes: int) -> None:
    """Requests and responses pass between the server and Python models through shared memory."""
    if machine.shared_memory_free_bytes < needed_bytes:
        raise ServerError(
            f"`{machine.shared_memory}` has {machine.shared_memory_free_bytes // MIB} MiB free, "
            f"the models of this repository need {-(-needed_bytes // MIB)} MiB",
            hint=f"Free some, or enlarge it: `mount -o remount,size=1G {machine.shared_memory}`; "
            "in Docker: `--shm-size=1g`.",
        )
