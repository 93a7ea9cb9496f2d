"""A repository is assembled from what the configuration names: another revision of the hub is another model."""

import shutil

import huggingface_hub.constants
import pytest
from safetensors.torch import load_file, save_file

from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import ArtefactError

FIRST, SECOND, SAME = (letter * 40 for letter in "abc")
PLACES = {"base": ("tiny/base", "model.safetensors"), "adapter": ("tiny/adapter", "adapter_model.safetensors")}


@pytest.fixture
def hub_project(project, monkeypatch):
    """A project whose base and adapter come from the hub, as it lies in a cache: SECOND differs, SAME does not."""
    cache = project.folder / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for role, (hub_id, weights) in PLACES.items():
        stored = cache / f"models--{hub_id.replace('/', '--')}"
        for commit in (FIRST, SECOND, SAME):
            shutil.copytree(project.folder / role, stored / "snapshots" / commit)
        path = stored / "snapshots" / SECOND / weights
        tensors = load_file(path)
        tensors[sorted(tensors)[0]] *= 1.5
        save_file(tensors, path, metadata={"format": "pt"})
        (stored / "refs").mkdir()
        (stored / "refs" / "v1").write_text(FIRST)
        shutil.rmtree(project.folder / role)
    project.edit('base = "base"', f'base = "tiny/base"\nrevision = "{FIRST}"')
    project.edit('adapter = "adapter"', f'adapter = "tiny/adapter"\nadapter_revision = "{FIRST}"')
    project.run("all")
    return project


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (f'\nrevision = "{FIRST}"', f'\nrevision = "{SECOND}"', "`base` is `tiny/base` at `bbbb"),
        (f'adapter_revision = "{FIRST}"', f'adapter_revision = "{SECOND}"', "`adapter` is `tiny/adapter` at `bbbb"),
        ('base = "tiny/base"', 'base = "tiny/other"', "`base` is `tiny/other` at `aaaa"),
        ('adapter = "tiny/adapter"', 'adapter = "tiny/other"', "`adapter` is `tiny/other` at `aaaa"),
        ('adapter = "tiny/adapter"', 'adapter = ["tiny/adapter", "tiny/other"]', "adapter 1, adapter 2, base"),
    ],
    ids=["revision", "adapter revision", "base", "adapter", "one more adapter"],
)
def test_a_repository_of_another_revision_is_not_assembled(hub_project, old, new, named):
    hub_project.edit(old, new)
    with pytest.raises(ArtefactError, match=f"`gemma` was exported from .*{named}") as caught:
        hub_project.run("repository")
    assert "preference-export all" in caught.value.hint


def test_what_was_exported_from_the_hub_is_assembled_without_it(hub_project, monkeypatch):
    shutil.rmtree(hub_project.folder / "cache")
    assert hub_project.run("repository")["results"][0]["changed"] is False


def test_a_dry_run_looks_into_the_cache_and_never_asks_the_hub(hub_project, monkeypatch):
    asked = []
    download = huggingface_hub.snapshot_download

    def noted(name, **options):
        asked.append(options["local_files_only"])
        return download(name, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", noted)
    assert not any(result["changed"] for result in hub_project.run("all", "--dry-run")["results"])
    hub_project.edit(f'\nrevision = "{FIRST}"', f'\nrevision = "{SECOND}"')
    told = hub_project.run("all", "--dry-run")["results"][0]
    assert told["because"] == "`inputs` changed (base)"
    assert set(asked) == {True}


def test_another_revision_with_the_same_files_is_noted_and_nothing_is_exported_again(hub_project):
    hub_project.edit(f'\nrevision = "{FIRST}"', f'\nrevision = "{SAME}"')
    results = hub_project.run("all")["results"]
    assert [result["changed"] for result in results] == [False, False, False]
    details = read_manifest(hub_project.folder / "build" / "tiny" / "members" / "gemma").details
    assert details["base"] == {"hub_id": "tiny/base", "revision": SAME, "commit": SAME}
    assert hub_project.run("repository")["results"][0]["changed"] is False


def test_a_tag_and_its_commit_are_the_same_revision(hub_project):
    hub_project.edit(f'\nrevision = "{FIRST}"', '\nrevision = "v1"')
    hub_project.run("all")
    assert hub_project.run("repository")["results"][0]["changed"] is False
    hub_project.edit('\nrevision = "v1"', f'\nrevision = "{FIRST}"')
    assert hub_project.run("repository")["results"][0]["changed"] is False
