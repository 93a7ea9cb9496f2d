"""Killed or out of space at any moment, an export leaves nothing half-made, and a rerun completes it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from preference_core.artefacts.manifest import verify
from preference_core.battles.lengths import LengthBuckets, write_buckets
from preference_core.errors import SystemFailure

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("interrupted_export.py")
MORE_MEMBERS = """
[[member]]
name = "other"
base = "base"
adapter = "adapter"
template = "llama"
special_tokens = "template"
max_tokens = 32
precision = "fp16"

[[member]]
name = "length"
kind = "length_buckets"
base = "buckets"
"""


def contents(folder):
    """Every file and folder below `folder`, hidden ones too, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def test_an_export_killed_at_ten_random_moments_ends_byte_identical_to_an_undisturbed_one(project, tmp_path):
    shutil.rmtree(project.folder / "build")
    project.edit("[serving]", MORE_MEMBERS + "\n[serving]")
    (project.folder / "buckets").mkdir()
    labels = ("winner_model_a", "winner_model_b", "winner_tie")
    write_buckets(
        project.folder / "buckets", LengthBuckets(labels, "words", (0.0,), ((0.2, 0.5, 0.3), (0.5, 0.2, 0.3)))
    )
    killed = tmp_path / "killed"
    shutil.copytree(project.folder, killed)
    arguments = [sys.executable, DRIVER, project.folder, killed, "10", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "10 of " in result.stdout
    assert contents(killed / "build") == contents(project.folder / "build")
    verify(killed / project.config.folders.repository)


@pytest.fixture
def small_disk(project):
    """A file system of 64 KiB at the place where merged checkpoints go."""
    folder = project.config.folders.root / "merged"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_leaves_nothing_and_a_rerun_with_room_completes(project, small_disk):
    with pytest.raises(SystemFailure, match=r"merged/gemma` could not be written: .*No space left") as caught:
        project.run("merge")
    assert caught.value.hint == "Free space there and run it again."
    assert not list(small_disk.iterdir())
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    project.run("merge")
    assert (small_disk / "gemma" / "model.safetensors").is_file()


def test_an_old_member_that_a_kill_left_is_removed_though_nothing_is_exported_again(project):
    left = project.folder / "build" / "tiny" / "members" / ".gemma.old"
    shutil.copytree(project.folder / "build" / "tiny" / "members" / "gemma", left)
    assert [result["changed"] for result in project.run("all")["results"]] == [False, False, False]
    assert not left.exists()
