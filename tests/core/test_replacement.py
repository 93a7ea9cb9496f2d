"""Files and folders appear whole or not at all."""

import errno
import os

import pytest

from preference_core.artefacts import replacement
from preference_core.artefacts.replacement import (
    end_exchange,
    exchange,
    link_or_copy,
    remove_remains,
    replaced_file,
    replaced_folder,
)
from preference_core.errors import SystemFailure, UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_filled_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "target"
    for content in ("one", "two"):
        with replaced_folder(target) as folder:
            (folder / content).touch()
    assert names(target) == ["two"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_is_no_folder_gives_way_to_one(tmp_path, what):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    target.touch() if what == "file" else target.symlink_to(elsewhere)
    with replaced_folder(target) as folder:
        (folder / "new").touch()
    assert (names(target), names(elsewhere), names(tmp_path)) == (["new"], ["kept"], ["elsewhere", "target"])


def test_the_old_folder_can_be_kept(tmp_path):
    target, kept = tmp_path / "target", tmp_path / "kept"
    for content in ("one", "two", "three"):
        with replaced_folder(target, keep_as=kept) as folder:
            (folder / content).touch()
    assert (names(target), names(kept)) == (["three"], ["two"])


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path, failure):
    target = tmp_path / "target"
    with replaced_folder(target) as folder:
        (folder / "old").touch()

    def fail():
        with replaced_folder(target) as folder:
            (folder / "new").touch()
            raise failure

    with pytest.raises((SystemFailure, KeyboardInterrupt)) as caught:
        fail()
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left" in caught.value.message
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("resume", [None, "the same"])
def test_a_folder_that_another_run_fills_is_left_to_it(tmp_path, resume):
    """Both would write files of the same names, and the first would give its manifest to what the second wrote."""
    target = tmp_path / "target"
    with replaced_folder(target, resume=resume) as folder:
        (folder / "file").touch()
        with pytest.raises(UserError, match="Another run is writing"), replaced_folder(target, resume=resume):
            pass
        assert "file" in names(folder)
    assert names(target) == ["file"]
    assert names(tmp_path) == ["target"]


def test_what_a_killed_run_left_is_written_again(tmp_path):
    target, part = tmp_path / "target", tmp_path / ".target.part"
    (part / "inner").mkdir(parents=True)
    (part / "link").symlink_to(tmp_path)
    with replaced_folder(target) as folder:
        assert names(folder) == []
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
        patch.setattr("preference_core.artefacts.replacement.os.rename", rename)
        with pytest.raises(KeyboardInterrupt):
            exchange(one, other)
    end_exchange(one, other)
    done = killed_after == 2
    assert (names(one), names(other)) == ((["was other"], ["was one"]) if done else (["was one"], ["was other"]))
    assert names(tmp_path) == ["one", "other"]
    exchange(one, other)
    assert names(one) == (["was one"] if done else ["was other"])


@pytest.mark.parametrize("killed_after", [1, 2])
def test_the_old_folder_does_not_stay_for_ever_after_a_kill(tmp_path, monkeypatch, killed_after):
    """Killed between two renames, or before the old folder is removed: weights of this size fill a disk."""
    target, renames = tmp_path / "target", []

    def rename(source, place):
        if len(renames) == killed_after:
            raise KeyboardInterrupt
        renames.append(place)
        os.replace(source, place)

    def removal(path):
        if path.name == ".target.old" and path.exists():
            raise KeyboardInterrupt

    with replaced_folder(target) as folder:
        (folder / "first").touch()
    with monkeypatch.context() as patch:
        patch.setattr("preference_core.artefacts.replacement.os.rename", rename)
        patch.setattr("preference_core.artefacts.replacement._remove", removal)
        with pytest.raises(KeyboardInterrupt), replaced_folder(target) as folder:
            (folder / "second").touch()
    assert ".target.old" in names(tmp_path)
    remove_remains(target)
    assert ".target.old" not in names(tmp_path)
    with replaced_folder(target) as folder:
        (folder / "third").touch()
    assert names(tmp_path) == ["target"]


def test_a_rename_that_fails_leaves_the_old_folder_in_place(tmp_path, monkeypatch):
    target, renames = tmp_path / "target", []
    with replaced_folder(target) as folder:
        (folder / "old").touch()

    def rename(source, place):
        renames.append(place)
        if len(renames) == 2:
            raise OSError(errno.EACCES, "Permission denied")
        os.replace(source, place)

    monkeypatch.setattr("preference_core.artefacts.replacement.os.rename", rename)
    with pytest.raises(SystemFailure, match="could not be written"), replaced_folder(target) as folder:
        (folder / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


def test_a_file_in_the_way_is_one_error(tmp_path):
    (tmp_path / "build").touch()
    with (
        pytest.raises(SystemFailure, match=r"build/name/target` could not be written"),
        replaced_folder(tmp_path / "build" / "name" / "target"),
    ):
        pass


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".target.part").mkdir()
    (tmp_path / ".target.part" / "half").touch()
    with replaced_folder(tmp_path / "target") as folder:
        (folder / "new").touch()
    assert names(tmp_path / "target") == ["new"]
    assert names(tmp_path) == ["target"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls, sync, put = [], os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda number: calls.append("fsync") or sync(number))
    monkeypatch.setattr("os.replace", lambda *paths: calls.append("replace") or put(*paths))
    with replaced_file(tmp_path / "file") as part:
        part.write_text("new")
    assert calls == ["fsync", "replace"]
    assert names(tmp_path) == ["file"]


def test_an_unfinished_folder_is_resumed_only_with_what_it_was_begun_with(tmp_path):
    target = tmp_path / "target"

    def stopped(resume):
        with replaced_folder(target, resume=resume) as folder:
            (folder / f"made with {resume}").touch()
            raise KeyboardInterrupt

    for resume in ("one", "one", "two"):
        with pytest.raises(KeyboardInterrupt):
            stopped(resume)
    with replaced_folder(target, resume="two") as folder:
        assert names(folder) == [".begun", "made with two"]
    assert names(target) == ["made with two"]
    assert names(tmp_path) == ["target"]


def test_an_error_that_is_not_of_the_file_system_is_not_taken_for_one(tmp_path):
    with pytest.raises(OSError, match="no such tokenizer"), replaced_folder(tmp_path / "target"):
        raise OSError("no such tokenizer")


def test_small_files_are_copied_and_large_ones_get_a_second_name(tmp_path, monkeypatch):
    monkeypatch.setattr(replacement, "LARGEST_COPY_BYTES", 10)
    for name, content in (("small", "0123456789"), ("large", "0123456789a")):
        (tmp_path / name).write_text(content)
        link_or_copy(tmp_path / name, tmp_path / f"{name}-2")
        assert (tmp_path / f"{name}-2").read_text() == content
        assert (tmp_path / f"{name}-2").samefile(tmp_path / name) == (name == "large")
