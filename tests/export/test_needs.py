"""What is missing on this machine is said before anything is fetched, read or written."""

import shutil
import sys
from types import SimpleNamespace

import pytest

from preference_core.errors import ConfigError, SystemFailure, UserError
from preference_export import needs
from preference_export.engine import runtimes

SECOND = """
[[member]]
name = "other"
base = "{base}"
template = "gemma"
max_tokens = 48

[serving]"""


@pytest.fixture
def fresh(project):
    """A project in which nothing was exported yet, and nothing may be."""
    shutil.rmtree(project.folder / "build")
    yield project
    assert not (project.folder / "build").exists()


def refused(project, *arguments):
    """What the run is refused with, and the dry run, too."""
    errors = []
    for more in ((), ("--dry-run",)):
        with pytest.raises((UserError, SystemFailure)) as caught:
            project.run(*(arguments or ("all",)), *more)
        errors.append(caught.value)
    one, two = errors
    assert one.hint or ", line " in one.message
    assert (type(one), one.message, one.hint) == (type(two), two.message, two.hint)
    return one


def test_a_base_of_the_last_member_is_missing(fresh):
    fresh.edit("\n[serving]", SECOND.format(base="checkpoints/nowhere/at/all"))
    assert "neither a folder nor a hub id" in refused(fresh).message


def test_an_adapter_is_missing(fresh):
    shutil.rmtree(fresh.folder / "adapter")
    assert "`adapter` of `gemma` is `adapter`" in refused(fresh).message


def test_the_sample_is_missing(fresh):
    (fresh.folder / "battles.csv").unlink()
    assert isinstance(refused(fresh), ConfigError)


def test_the_sample_cannot_be_read(fresh):
    (fresh.folder / "battles.csv").write_text("id,prompt\n1,hello\n")
    assert "`data.sample`: " in refused(fresh).message


def test_the_sample_lacks_the_labels_that_a_limit_needs(fresh):
    fresh.edit("max_tokens = 48", "max_tokens = 48\nparity = { max_log_loss_change = 0.1 }")
    (fresh.folder / "battles.csv").write_text("id,prompt,response_a,response_b\n1,hello,a,b\n")
    assert "`parity.max_log_loss_change` of `gemma` needs labels" in refused(fresh).message


def test_too_little_room_for_the_weights(fresh, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    assert "GB free, the weights to be written take" in refused(fresh).message


def test_what_was_exported_before_needs_no_room(project, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    assert not any(result["changed"] for result in project.run("all")["results"])


def test_what_measures_ranges_is_not_installed(fresh, monkeypatch):
    fresh.edit("max_tokens = 48", 'max_tokens = 48\nprecision = "fp8"')
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "modelopt", None)
    assert "ModelOpt is not installed here" in refused(fresh).message


@pytest.fixture
def with_tensorrt(fresh):
    fresh.edit("max_tokens = 48", 'max_tokens = 48\nengine = "tensorrt"')
    return fresh


def test_tensorrt_is_not_installed(with_tensorrt, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT is not installed here" in refused(with_tensorrt).message


def no_builder(logger):
    raise TypeError("pybind11::init(): factory function returned nullptr")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["all"], "cannot be compared with the original model"), (["all", "--unchecked"], "cannot build the engine")],
)
def test_there_is_no_gpu(with_tensorrt, monkeypatch, arguments, said):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(Builder=no_builder, Logger=object))
    monkeypatch.setattr(runtimes, "gpus", tuple)
    assert said in refused(with_tensorrt, *arguments).message
