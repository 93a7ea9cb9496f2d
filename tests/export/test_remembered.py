"""The original is asked once: another precision or limit is compared with its first answers, while they are current."""

import pytest

from preference_core.artefacts.manifest import read_manifest
from preference_core.errors import ParityError
from preference_export.original import member as originals
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
    project.run("all")
    assert (opened, measured(project)) == ([], before)


@pytest.mark.slow
def test_another_precision_needs_no_second_run(project, opened):
    before = measured(project)
    project.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp16"')
    project.run("all")
    assert opened == []
    assert 10 * before < measured(project) < 0.05


def test_check_asks_again(project, opened):
    project.run("check")
    assert opened == ["gemma"]


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


def test_what_is_remembered_hides_no_export_that_is_wrong(project, opened):
    project.edit("max_tokens = 48", "max_tokens = 48\nparity = { max_logit_difference = 0.0 }")
    with pytest.raises(ParityError, match="the limit is 0"):
        project.run("all")
    assert opened == []
