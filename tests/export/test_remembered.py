"""The original is asked once: another precision or limit is compared with its first answers, while they are current."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from preference_core.artefacts.manifest import read_manifest, write_manifest
from preference_core.errors import ArtefactError, ParityError, SystemFailure
from preference_export.kinds import jobs_of
from preference_export.original import member as originals
from preference_export.original import remembered
from preference_export.original.remembered import LOGITS_FILE

LIMITS = "max_tokens = 48\nparity = { max_logit_difference = 0.5 }"


@pytest.fixture
def opened(monkeypatch):
    """The members whose original was opened."""
    names, reference_of = [], originals.reference_of
    monkeypatch.setattr(originals, "reference_of", lambda job: names.append(job.member.name) or reference_of(job))
    return names


def measured(project):
    return read_manifest(project.config.folders.exported("gemma")).parity["max_logit_difference"]


def test_other_limits_need_no_second_run(project, opened):
    before = measured(project)
    project.edit("max_tokens = 48", LIMITS)
    assert [stage["changed"] for stage in project.run("all")["results"] if stage["stage"] == "check"] == [True]
    assert (opened, measured(project)) == ([], before)


@pytest.mark.slow
def test_another_precision_needs_no_second_run(project, opened):
    before = measured(project)
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp16"')
    project.run("all")
    assert opened == []
    assert 10 * before < measured(project) < 0.05


def test_check_asks_again(project, opened):
    file = project.config.folders.original("gemma") / LOGITS_FILE
    file.unlink()
    assert project.run("check")["results"][0]["changed"]
    assert opened == ["gemma"]
    assert file.exists()


@pytest.mark.parametrize("what", ["sample", "answers"])
def test_other_sequences_and_a_damaged_file_are_asked_again(project, opened, what):
    if what == "sample":
        path = project.folder / "battles.csv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    else:
        (project.config.folders.original("gemma") / LOGITS_FILE).write_bytes(b"")
        project.edit("max_tokens = 48", LIMITS)
    project.run("all")
    assert opened == ["gemma"]


@pytest.mark.slow
def test_another_adapter_is_asked_for_itself(project, opened, make):
    before = (project.config.folders.original("gemma") / LOGITS_FILE).read_bytes()
    make.adapter(project.folder / "adapter", project.folder / "base", r=2)
    project.run("all")
    assert opened == ["gemma"]
    assert (project.config.folders.original("gemma") / LOGITS_FILE).read_bytes() != before


def test_what_is_remembered_hides_no_export_that_is_wrong_and_refuses_none_that_is_right(project, opened):
    before = measured(project)
    file = project.config.folders.original("gemma") / LOGITS_FILE
    right = file.read_bytes()
    file.write_bytes(save({"logits": load(right)["logits"] + 0.1}))
    write_manifest(file.parent, replace(read_manifest(file.parent), files={}))
    project.edit("max_tokens = 48", LIMITS)
    project.run("all")
    assert measured(project) > 0.05, "what is within the limits is not asked again"
    project.edit("max_logit_difference = 0.5", "max_logit_difference = 0.01")
    project.run("all")
    assert (opened, measured(project), file.read_bytes()) == (["gemma"], before, right)
    project.edit("max_logit_difference = 0.01", "max_logit_difference = 0.0")
    with pytest.raises(ParityError, match="the limit is 0"):
        project.run("all")
    assert opened == ["gemma", "gemma"]


def test_an_original_that_is_not_finite_is_an_error_and_not_remembered(project, monkeypatch):
    class Overflown:
        def logits(self, sequences):
            return np.full((len(sequences), 3), np.nan, np.float32)

    monkeypatch.setattr(originals, "reference_of", lambda job: Overflown())
    shutil.rmtree(project.config.folders.original("gemma"))
    with pytest.raises(SystemFailure, match="original model of `gemma` answers with logits that are not finite"):
        project.run("check")
    assert not project.config.folders.original("gemma").exists()


def test_files_that_change_while_the_original_reads_them_are_an_error_and_nothing_is_remembered(project, monkeypatch):
    reference_of = originals.reference_of

    def retrained(job):
        with (project.folder / "adapter" / "adapter_config.json").open("a") as file:
            file.write("\n")
        return reference_of(job)

    monkeypatch.setattr(originals, "reference_of", retrained)
    shutil.rmtree(project.config.folders.original("gemma"))
    with pytest.raises(ArtefactError, match="Files of the base or the adapter of `gemma` changed while they were read"):
        project.run("check")
    assert not project.config.folders.original("gemma").exists()


@pytest.mark.parametrize("what", ["sequences", "adapter", "base_rounding", "labels", "GPU", "versions"])
def test_all_that_decides_the_answers_is_part_of_what_they_are_made_from(project, monkeypatch, what):
    sequences = [np.arange(3, dtype=np.int32)]
    before = remembered.answers(jobs_of(project.config)[0], sequences)
    job = jobs_of(project.config)[0]
    match what:
        case "sequences":
            sequences = [sequences[0][:2]]
        case "adapter":
            with (project.folder / "adapter" / "adapter_config.json").open("a") as file:
                file.write("\n")
        case "base_rounding":
            job.member = replace(job.member, base_rounding="fp16")
        case "labels":
            job.config = replace(job.config, labels=("model_a", "model_b"))
        case "GPU":
            monkeypatch.setattr(remembered, "name_of_device", lambda: "NVIDIA H100")
        case "versions":
            monkeypatch.setattr(remembered, "versions", lambda: {"torch": "2.0"})
    after = remembered.answers(job, sequences)
    assert (before.made_from, before.versions) != (after.made_from, after.versions)
