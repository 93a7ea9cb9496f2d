"""Hub ids are fetched at their pinned revision, safetensors only; what goes wrong is said in one line."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from preference_core.errors import SystemFailure
from preference_export.checkpoint import files as checkpoint
from preference_export.checkpoint.files import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_id_is_fetched_at_its_revision_without_any_pickle(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(hub_id, **options):
        asked.update(options, hub_id=hub_id)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot_download)
    found = locate("google/gemma-2-9b-it", "v1")
    assert asked == {
        "hub_id": "google/gemma-2-9b-it",
        "revision": "v1",
        "allow_patterns": ["*.json", "*.safetensors"],
    }
    assert (found.folder, found.commit) == (Path(tmp_path / COMMIT), COMMIT)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def snapshot_download(hub_id, **options):
        raise LocalEntryNotFoundError("An error happened\nwith many lines")

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot_download)
    with pytest.raises(SystemFailure, match=r"`google/gemma-2-9b-it` at `v1` could not be fetched: An error happened$"):
        locate("google/gemma-2-9b-it", "v1")


def test_a_folder_wins_over_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "gemma").mkdir(parents=True)
    assert locate("google/gemma", None).commit is None
