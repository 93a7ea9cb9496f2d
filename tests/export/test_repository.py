"""The repository holds what the contract says, changes only with its content, and is never there in part."""

import json
import os
import shutil
import signal
import sys

import pytest
from triton_messages import message_of

from preference_core import tensors
from preference_core.artefacts.manifest import files_below, read_manifest, sha256_of, verify
from preference_core.battles.template import PRESETS
from preference_core.battles.tokenisation import BattleTokenizer
from preference_core.ensemble.combination import Combination
from preference_core.errors import ArtefactError
from preference_core.structure import structure
from preference_export.kinds import jobs_of
from preference_export.repository.assemble import assemble
from preference_export.repository.triton_config import model_configs


def content_of(folder):
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files_below(folder)}


def test_the_layout_is_that_of_the_contract(project):
    repository = project.config.folders.repository
    assert set(content_of(repository)) == {
        "tokenize/config.pbtxt",
        "tokenize/1/model.py",
        "tokenize/1/gemma/tokenizer.json",
        "tokenize/1/gemma/tokenisation.json",
        "gemma/config.pbtxt",
        "gemma/1/model.onnx",
        "gemma/1/model.onnx.data",
        "combine/config.pbtxt",
        "combine/1/model.py",
        "combine/1/combination.json",
        "combine_symmetric/config.pbtxt",
        "combine_symmetric/1/model.py",
        "combine_symmetric/1/combination.json",
        "preference_ensemble/config.pbtxt",
        "preference_ensemble_symmetric/config.pbtxt",
    }
    for ensemble in (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC):
        assert list((repository / ensemble / "1").iterdir()) == []
    assert verify(repository).details["members"] == ["gemma"]


def test_what_the_python_models_load_is_what_the_configuration_says(project):
    repository, config = project.config.folders.repository, project.config
    rule = json.loads((repository / "combine" / "1" / "combination.json").read_text())
    assert structure(Combination, rule) == config.combination
    settings = BattleTokenizer.from_folder(repository / "tokenize" / "1" / "gemma").settings
    assert (settings.template, settings.max_tokens, settings.eos_token) == (PRESETS["gemma"], 48, "<eos>")
    for name, message in model_configs(config).items():
        written = message_of((repository / name / "config.pbtxt").read_text())
        written.parameters.pop(tensors.CONTENT_PARAMETER, None)
        assert written == message


def test_both_ensembles_tell_what_they_are_made_of(project, finished_project):
    repository = finished_project.config.folders.repository
    for name in (tensors.ENSEMBLE, tensors.ENSEMBLE_SYMMETRIC):
        parameters = message_of((repository / name / "config.pbtxt").read_text()).parameters
        assert parameters["content"].string_value == read_manifest(repository).made_from["content"]


def test_no_file_names_this_machine(project, finished_project):
    paths = [*files_below(project.config.folders.repository), project.config.folders.repository / "manifest.json"]
    for path in paths:
        assert str(finished_project.folder).encode() not in path.read_bytes()


def test_a_second_run_changes_nothing_and_says_so(project):
    before = {path: path.stat().st_mtime_ns for path in files_below(project.config.folders.repository)}
    summary = project.run("all")
    assert [(result["stage"], result["changed"]) for result in summary["results"]] == [
        ("onnx", False),
        ("check", False),
        ("repository", False),
    ]
    assert {path: path.stat().st_mtime_ns for path in files_below(project.config.folders.repository)} == before


def test_changed_content_gets_the_next_version_and_the_one_before_is_kept(project):
    first = content_of(project.config.folders.repository)
    project.edit("max_batch_size = 8", "max_batch_size = 4")
    (result,) = project.run("repository")["results"]
    assert (result["changed"], result["version"]) == (True, 2)
    repository = project.config.folders.repository
    assert verify(repository).details["version"] == 2
    for model in model_configs(project.config):
        assert [path.name for path in (repository / model).iterdir() if path.is_dir()] == ["2"]
    assert content_of(project.config.folders.previous_repository) == first


def test_an_edit_in_a_repository_reaches_neither_the_one_before_nor_the_members(project):
    folders = project.config.folders
    project.edit("max_batch_size = 8", "max_batch_size = 4")
    project.run("repository")
    others = [folders.previous_repository, folders.root / "members"]
    before = [content_of(folder) for folder in others]
    for path in files_below(folders.repository):
        with path.open("ab") as file:
            file.write(b"edited")
    assert [content_of(folder) for folder in others] == before
    assert project.run("rollback")["results"][0]["version"] == 1
    verify(folders.repository)


def test_a_roll_back_goes_back_and_forth(project):
    first = content_of(project.config.folders.repository)
    project.edit("max_batch_size = 8", "max_batch_size = 4")
    project.run("repository")
    second = content_of(project.config.folders.repository)
    assert project.run("rollback")["results"][0]["version"] == 1
    assert content_of(project.config.folders.repository) == first
    assert project.run("rollback")["results"][0]["version"] == 2
    assert content_of(project.config.folders.repository) == second


def test_a_roll_back_works_where_no_repository_is_left(project):
    first = content_of(project.config.folders.repository)
    project.edit("max_batch_size = 8", "max_batch_size = 4")
    project.run("repository")
    shutil.rmtree(project.config.folders.repository)
    project.run("rollback")
    assert content_of(project.config.folders.repository) == first


def test_without_an_earlier_repository_there_is_nothing_to_go_back_to(project):
    with pytest.raises(ArtefactError, match="nothing to go back to"):
        project.run("rollback")


def test_a_repository_that_was_changed_by_hand_is_made_again(project):
    path = project.config.folders.repository / "combine" / "1" / "combination.json"
    good = path.read_text()
    path.write_text(good.replace("1.0", "2.0"))
    assert project.run("all")["results"][-1]["version"] == 2
    assert (project.config.folders.repository / "combine" / "2" / "combination.json").read_text() == good


def test_a_member_of_other_settings_is_refused(project):
    project.edit("max_tokens = 48", "max_tokens = 40")
    with pytest.raises(ArtefactError, match="exported with other settings"):
        project.run("repository")


FILE_SYSTEM_CHANGES = {"os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "shutil.copyfile"}


def assemble_in_a_child(config, killed_at):
    """Assembles in a forked process, killed before its `killed_at`-th file-system change; True if it survived."""
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event, arguments):
            nonlocal changes
            written = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax")
            if event in FILE_SYSTEM_CHANGES or written:
                changes += 1
                if changes == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            assemble(config, jobs_of(config))
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_assembly_killed_at_any_moment_leaves_a_whole_repository_or_none_and_a_rerun_completes(project):
    before = read_manifest(project.config.folders.repository).details["version"]
    project.edit("max_batch_size = 8", "max_batch_size = 4")
    config = project.config
    moment, seen = 1, set()
    while not assemble_in_a_child(config, moment):
        moment += 1
        seen.add(verify(config.folders.repository).details["version"] if config.folders.repository.exists() else None)
    assert moment > 20, "too few moments to prove anything"
    assert before in seen
    assert seen <= {before, None, before + 1}
    finished = content_of(config.folders.repository)
    assert assemble(config, jobs_of(config)).changed is False
    assert read_manifest(config.folders.repository).details["version"] == before + 1
    left = {path.name for path in config.folders.root.iterdir()}
    assert left == {"members", "originals", "repository", "repository.previous"}
    assert finished == content_of(config.folders.repository)
