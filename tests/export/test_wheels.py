"""Installed from wheels, far from the checkout: a checkpoint is exported, served, and scored by a client alone."""

import csv
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from preference_core.artefacts.manifest import read_manifest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
PARTS = ("core", "training", "export", "client", "embedded")


def run(folder, *command):
    result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    run(ROOT, "make", "wheels", f"WHEELS={folder}")
    return folder


@pytest.fixture(scope="module")
def install(wheels):
    """Installs distributions of this project, and nothing else, into the environment of an interpreter."""

    def into(python, *parts):
        files = [next(wheels.glob(f"preference_{part}-*.whl")) for part in parts]
        run(wheels, sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", *files)

    return into


def test_every_file_that_git_knows_is_in_a_wheel(wheels):
    missing = []
    for part in PARTS:
        unpacked = wheels / part
        shutil.unpack_archive(next(wheels.glob(f"preference_{part}-*.whl")), unpacked, "zip")
        known = run(ROOT / part, "git", "ls-files", f"preference_{part}").split()
        assert known
        missing += [name for name in known if not (unpacked / name).is_file()]
    assert missing == []


@pytest.fixture(scope="module")
def server(install, tmp_path_factory):
    """An environment with `preference-serve` from wheels, and the tritonserver that the other tests use."""
    folder = tmp_path_factory.mktemp("server")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python3"
    where = "import site; print(*site.getsitepackages(), sep='\\n')"
    packages = run(folder, os.environ["PREFERENCE_SERVER_PYTHON"], "-c", where)
    next(folder.rglob("site-packages")).joinpath("tritonserver.pth").write_text(packages)
    install(python, "core", "embedded")
    return python


def test_a_checkpoint_is_exported_served_and_scored_from_wheels(
    finished_project, install, server, bare_environment, tmp_path
):
    exporter = bare_environment(tmp_path / "exporter", "preference-export")
    install(exporter, "core", "export")
    client = bare_environment(tmp_path / "client", "preference-client")
    install(client, "core", "client")
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for name in ("base", "adapter"):
        shutil.copytree(finished_project.folder / name, project / name)
    for name in ("battles.csv", "ensemble.toml"):
        shutil.copy(finished_project.folder / name, project)
    elsewhere.mkdir()
    shutil.copy(project / "battles.csv", elsewhere)

    run(project, exporter.with_name("preference-export"), "all", "ensemble.toml")
    made, expected = (read_manifest(folder / "build/tiny/repository") for folder in (project, finished_project.folder))
    assert made.files == expected.files, "the checkout exports something else"
    score = [client.with_name("preference-score"), elsewhere / "battles.csv", "-o", elsewhere / "predictions.csv"]
    run(project, server.with_name("preference-serve"), "ensemble.toml", "--python", server, "--run", "--", *score)
    with (elsewhere / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4"]
    for row in rows:
        assert sum(float(row[label]) for label in LABELS) == pytest.approx(1)
