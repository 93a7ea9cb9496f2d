"""Folders appear whole or not at all."""

import errno
import os

import pytest

from preference_core.errors import SystemFailure
from preference_export.folders import end_exchange, exchange, replaced


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_filled_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "target"
    for content in ("one", "two"):
        with replaced(target) as folder:
            (folder / content).touch()
    assert names(target) == ["two"]
    assert names(tmp_path) == ["target"]


def test_the_old_folder_can_be_kept(tmp_path):
    target, kept = tmp_path / "target", tmp_path / "kept"
    for content in ("one", "two", "three"):
        with replaced(target, keep_as=kept) as folder:
            (folder / content).touch()
    assert (names(target), names(kept)) == (["three"], ["two"])


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path, failure):
    target = tmp_path / "target"
    with replaced(target) as folder:
        (folder / "old").touch()

    def fail():
        with replaced(target) as folder:
            (folder / "new").touch()
            raise failure

    with pytest.raises((SystemFailure, KeyboardInterrupt)) as caught:
        fail()
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left" in caught.value.message
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_killed_exchange_is_put_right_by_the_next_one(tmp_path, monkeypatch, killed_after):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / f"was {folder.name}").touch()
    renames = []

    def rename(source, target):
        if len(renames) == killed_after:
            raise KeyboardInterrupt
        renames.append(target)
        os.replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("preference_export.folders.os.rename", rename)
        with pytest.raises(KeyboardInterrupt):
            exchange(one, other)
    end_exchange(one, other)
    done = killed_after == 2
    assert (names(one), names(other)) == ((["was other"], ["was one"]) if done else (["was one"], ["was other"]))
    assert names(tmp_path) == ["one", "other"]
    exchange(one, other)
    assert names(one) == (["was one"] if done else ["was other"])


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".target.part").mkdir()
    (tmp_path / ".target.part" / "half").touch()
    with replaced(tmp_path / "target") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "target") == ["new"]
    assert names(tmp_path) == ["target"]
