"""Folders and hub ids: what is refused, and that hub ids are fetched at their pinned revision, safetensors only."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from preference_core.ensemble.locations import Location
from preference_core.errors import CheckpointError, SystemFailure

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = Location("gemma", "base", "google/gemma-2-9b-it", "v1")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_hub_id_is_fetched_at_its_revision_without_any_pickle(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = PINNED.fetched()
    assert asked == {
        "hub_id": "google/gemma-2-9b-it",
        "revision": "v1",
        "allow_patterns": ["*.json", "*.safetensors"],
        "local_files_only": False,
    }
    assert (found.folder, found.commit) == (Path(tmp_path / COMMIT), COMMIT)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def snapshot_download(hub_id, **options):
        raise LocalEntryNotFoundError("An error happened\nwith many lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(SystemFailure, match=r"`google/gemma-2-9b-it` at `v1` could not be fetched: An error happened$"):
        PINNED.fetched()


def test_a_folder_wins_over_a_hub_id():
    Path("google/gemma").mkdir(parents=True)
    assert Location("gemma", "base", "google/gemma").fetched().commit is None


@pytest.mark.parametrize(
    ("role", "place", "message", "hint"),
    [
        ("base", ("google/gemma",), "`base` of `gemma` is .* a hub id needs `revision`", "Pin a hub id: `revision ="),
        ("adapter", ("checkpoints/lora",), "a hub id needs `adapter_revision`", "preference-train fit"),
        ("adapter", ("folder", "main"), "the folder `folder`, which has no `adapter_revision`", "Remove"),
        ("base", ("checkpoints/llama/missing",), "neither a folder nor a hub id", "working directory"),
    ],
    ids=["base not pinned", "adapter not pinned", "folder with a revision", "nowhere"],
)
def test_what_is_neither_a_folder_nor_a_pinned_hub_id_is_refused(role, place, message, hint):
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        Location("gemma", role, *place).fetched()
    assert hint in caught.value.hint


def test_a_folder_is_found_by_its_files_without_a_network():
    Path("folder").mkdir()
    Path("folder/config.json").touch()
    location = Location("gemma", "base", "folder")
    assert location.folder_with("config.json") == Path("folder")
    assert location.folder_with("config.json", "tokenizer.json") is None
    assert Location("gemma", "base", "google/gemma").folder_with("config.json") is None
