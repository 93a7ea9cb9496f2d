"""An artefact is current when it is whole, and was made from the same by the same."""

from dataclasses import replace

import pytest

from preference_core.artefacts.artefact import Artefact, changes
from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import SystemFailure


@pytest.fixture
def artefact(tmp_path):
    made = Artefact(tmp_path / "thing", "thing", {"seed": 1, "shape": (2, 3)}, {"numpy": "2.0"})
    with made.draft() as draft:
        (draft.folder / "file").write_text("one")
        draft.details["length"] = 3
    assert draft.manifest == read_manifest(made.folder)
    return made


def test_what_was_made_from_the_same_by_the_same_is_current(artefact):
    assert artefact.current().details == {"length": 3}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"made_from": {"seed": 1}}, "`shape` changed"),
        ({"made_from": {"seed": 1, "shape": (2, 3), "source": None}}, "`source` changed"),
        ({"versions": {"numpy": "2.1"}}, "numpy was 2.0"),
        ({"versions": {"torch": "2"}}, "torch was none"),
        ({"kind": "other"}, "it is of the kind `thing`"),
    ],
)
def test_what_was_made_from_or_by_something_else_is_not_and_says_why(artefact, change, why):
    assert replace(artefact, **change).current() is None
    assert replace(artefact, **change).state() == why


def test_tables_that_differ_name_their_keys():
    old, new = {"inputs": {"base": 1, "adapter": 2}, "seed": 1}, {"inputs": {"base": 1, "adapter": 3}, "seed": 1}
    assert list(changes(old, new)) == ["`inputs` changed (adapter)"]


def test_packages_that_no_longer_count_do_not_make_it_stale(artefact):
    assert replace(artefact, versions={}).current() is not None


@pytest.mark.parametrize("name", ["file", "manifest.json"])
def test_a_changed_byte_makes_it_stale(artefact, name):
    (artefact.folder / name).write_text("two")
    assert artefact.current() is None


def test_a_missing_folder_is_not_current(tmp_path):
    assert Artefact(tmp_path / "thing", "thing", {}).current() is None


def test_a_draft_that_fails_leaves_what_was_there(artefact):
    def fail():
        with artefact.draft() as draft:
            (draft.folder / "file").write_text("two")
            raise OSError(28, "No space left on device")

    with pytest.raises(SystemFailure, match=r"thing` could not be written: .*No space left"):
        fail()
    assert artefact.current() is not None
    assert [path.name for path in artefact.folder.parent.iterdir()] == ["thing"]
