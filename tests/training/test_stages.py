"""Stages: made once, made again when something changed, and never half-visible."""

import pytest

from preference_core.artefacts.artefact import versions_of
from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import UserError
from preference_training.stages import Stage, content_of


def stage(folder, **made_from):
    return Stage(folder / "thing", "thing", made_from, versions_of("numpy"))


def write(text):
    def make(folder):
        (folder / "file.txt").write_text(text, encoding="utf-8")
        return {"length": len(text)}

    return make


def test_a_folder_that_was_made_from_the_same_is_up_to_date(tmp_path):
    assert not stage(tmp_path, seed=1).is_up_to_date()
    stage(tmp_path, seed=1).run(write("one"))
    assert stage(tmp_path, seed=1).is_up_to_date()
    assert read_manifest(tmp_path / "thing").details == {"length": 3}


def test_a_folder_made_from_something_else_is_not(tmp_path):
    stage(tmp_path, seed=1).run(write("one"))
    assert not stage(tmp_path, seed=2).is_up_to_date()


def test_a_folder_made_by_another_version_of_a_package_is_not(tmp_path):
    made = stage(tmp_path, seed=1)
    object.__setattr__(made, "versions", {"numpy": "0.1"})
    made.run(write("one"))
    assert not stage(tmp_path, seed=1).is_up_to_date()


def test_a_changed_byte_makes_it_stale(tmp_path):
    stage(tmp_path, seed=1).run(write("one"))
    (tmp_path / "thing" / "file.txt").write_text("two", encoding="utf-8")
    assert not stage(tmp_path, seed=1).is_up_to_date()


def test_a_new_folder_replaces_the_old_one_whole(tmp_path):
    stage(tmp_path, seed=1).run(write("one"))
    (tmp_path / "thing" / "left_over").touch()
    stage(tmp_path, seed=2).run(write("two"))
    assert sorted(path.name for path in (tmp_path / "thing").iterdir()) == ["file.txt", "manifest.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_stage_that_is_stopped_half_way_leaves_the_old_folder(tmp_path):
    stage(tmp_path, seed=1).run(write("one"))

    def stopped(folder):
        (folder / "file.txt").write_text("tw", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, seed=2).run(stopped)
    assert stage(tmp_path, seed=1).is_up_to_date()
    stage(tmp_path, seed=2).run(write("two"))
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "weights").touch()
    with pytest.raises(UserError, match="is not a folder of thing"):
        stage(tmp_path, seed=1).is_up_to_date()
    assert (tmp_path / "thing" / "weights").exists()


def test_the_content_of_an_input_leaves_out_its_manifest(tmp_path):
    stage(tmp_path, seed=1).run(write("one"))
    assert list(content_of(tmp_path / "thing")) == ["file.txt"]
    with pytest.raises(UserError, match="no file or folder"):
        content_of(tmp_path / "nothing")
