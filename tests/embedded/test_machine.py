"""Every precondition of the bundled server, on facts, and this machine's own facts."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from preference_core.errors import ServerError
from preference_embedded import machine
from preference_embedded.launcher import Options
from preference_embedded.machine import MIB, Bundle, Machine, ServerPython


@pytest.fixture
def good(tmp_path: Path) -> Machine:
    """A machine on which the server runs."""
    stub = tmp_path / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").touch()
    return Machine(
        architecture="x86_64",
        glibc=(2, 36),
        python=ServerPython(tmp_path / "bin", "3.11", "1.26.4", tmp_path / "pytriton"),
        bundle=Bundle(tmp_path / "pytriton"),
        libpython=tmp_path / "libpython3.11.so.1.0",
        shared_memory=Path("/dev/shm"),
        shared_memory_free_bytes=64 * MIB,
    )


def python(good: Machine, **changes: Any) -> dict[str, ServerPython]:
    return {"python": dataclasses.replace(good.python, **changes)}


def test_a_machine_that_meets_every_precondition_passes(good: Machine) -> None:
    machine.check(good, shared_memory_bytes=32 * MIB)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"architecture": "aarch64"}, "built for x86_64, this machine is aarch64", "make up"),
        ({"glibc": (2, 31)}, "needs glibc 2.35 or later, this machine has glibc 2.31", "Debian 12"),
        ({"glibc": None}, "this machine has another C library", "Debian 12"),
        ({"bundle": None}, "There is no tritonserver in the environment", "--no-deps nvidia-pytriton==0.7.0"),
        ({"libpython": None}, "`libpython3.11.so.1.0` was not found", "apt-get install libpython3.11"),
        (
            {"shared_memory_free_bytes": 3 * MIB},
            "has 3 MiB free, the models of this repository need 32 MiB",
            "--shm-size",
        ),
    ],
)
def test_one_missing_precondition_is_one_error_with_a_hint(
    good: Machine, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        machine.check(dataclasses.replace(good, **changes), shared_memory_bytes=32 * MIB)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"version": "3.14"}, "cannot run models in Python 3.14", "with Python 3.11"),
        ({"numpy": "2.4.6"}, "needs NumPy 1 .*; version 2.4.6 is installed", "'numpy<2'"),
        ({"numpy": None}, "needs NumPy 1 .*; none is installed", "'numpy<2'"),
        ({"folder": Path("/nowhere")}, "`/nowhere` has no `python3`", "python3 -m venv"),
        ({"packages": (Path("/é/packages"),)}, "cannot be run from `/é/packages`: .* character `é`", "without it"),
        ({"sources": (Path("/a:b/core"),)}, "cannot be run from `/a:b/core`: .* character `:`", "without it"),
    ],
)
def test_an_environment_that_the_stub_cannot_use_is_refused(
    good: Machine, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        machine.check(dataclasses.replace(good, **python(good, **changes)), shared_memory_bytes=0)
    assert hint in str(caught.value.hint)


def test_the_library_is_taken_from_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    library = tmp_path / "second/libpython3.11.so.1.0"
    library.touch()
    folders = [tmp_path / "absent", tmp_path / "first", tmp_path / "second"]
    assert machine.find_library("libpython3.11.so.1.0", folders) == library
    assert machine.find_library("libpython3.11.so.1.0", folders[:2]) is None


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=f"The server's Python `{tmp_path}/python` does not run"):
        machine.gather(tmp_path / "python")


def test_the_facts_of_the_server_environment_are_found() -> None:
    facts = machine.gather(Options(Path()).python)
    assert facts.python.version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert facts.bundle is not None
    assert facts.python.version in facts.bundle.stub_versions
    assert facts.libpython is not None
    machine.check(facts, shared_memory_bytes=0)


def test_a_missing_shared_memory_folder_counts_as_no_free_memory(tmp_path: Path) -> None:
    facts = machine.gather(Path(sys.executable), shared_memory=tmp_path / "shm")
    assert facts.shared_memory_free_bytes == 0
