import errno
import hashlib
import json
import os
import socket

import pytest

from preference_core.artefacts.contents import seal_of
from preference_core.artefacts.manifest import (
    FILE_NAME,
    Manifest,
    fingerprint,
    hashed_once,
    read_manifest,
    sha256_of,
    sha256s_of,
    verify,
    write_manifest,
)
from preference_core.errors import ArtefactError, SystemFailure


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engine" / "1").mkdir(parents=True)
    (tmp_path / "engine" / "1" / "model.onnx").write_bytes(b"graph" * 1000)
    (tmp_path / "engine" / "config.pbtxt").write_text("name: 'engine'\n", encoding="utf-8")
    manifest = Manifest("repository", {}, versions={"onnx": "1"}, parity={"max_logit_difference": 1e-6})
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_an_untouched_folder_verifies_and_says_what_it_is(folder):
    manifest = verify(folder)
    assert manifest.kind == "repository"
    assert set(manifest.files) == {"engine/1/model.onnx", "engine/config.pbtxt"}
    assert manifest.parity == {"max_logit_difference": 1e-6}


def test_one_flipped_byte_is_refused_by_name(folder):
    path = folder / "engine" / "1" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"model\.onnx.* was changed"):
        verify(folder)
    verify(folder, below="other")


def test_a_file_that_was_cut_removed_or_added_is_refused_by_name(folder):
    path = folder / "engine" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="has 4999 bytes, its manifest says 5000"):
        verify(folder, below="engine")
    path.unlink()
    with pytest.raises(ArtefactError, match=r"model\.onnx` is missing"):
        verify(folder)
    path.write_bytes(b"graph" * 1000)
    (folder / "engine" / "extra.py").write_text("", encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"extra\.py` is not in the manifest"):
        verify(folder)


def test_links_are_refused(folder, tmp_path):
    (folder / "engine" / "link.onnx").symlink_to("/etc/hostname")
    with pytest.raises(ArtefactError, match="symbolic link"):
        verify(folder)


def test_byte_code_beside_a_program_is_refused_because_python_would_run_it(folder):
    cache = folder / "engine" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"anything")
    for below in ("", "engine"):
        with pytest.raises(ArtefactError, match=r"model\.cpython-311\.pyc` is not in the manifest") as caught:
            verify(folder, below=below)
        assert caught.value.hint == "Remove it: Python would run it."


def test_a_whole_model_called_like_a_byte_code_folder_is_refused(folder):
    (folder / "__pycache__" / "1").mkdir(parents=True)
    (folder / "__pycache__" / "config.pbtxt").write_text("backend: 'python'", encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"__pycache__/config\.pbtxt` is not in the manifest"):
        verify(folder)


@pytest.mark.parametrize("where", ["", "engine/1/"])
def test_pipes_and_sockets_are_refused_without_being_opened(folder, where, monkeypatch):
    pipe = folder / f"{where}pipe"
    os.mkfifo(pipe)
    with pytest.raises(ArtefactError, match="pipe` is a named pipe"):
        verify(folder)
    pipe.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)  # The path of a socket is short.
        listening.bind(f"{where}socket")
        with pytest.raises(ArtefactError, match="socket` is a socket"):
            verify(folder)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/hostname"), lambda path: path.mkdir()])
def test_a_manifest_that_is_no_regular_file_is_refused_without_being_opened(folder, make):
    (folder / FILE_NAME).unlink()
    make(folder / FILE_NAME)
    with pytest.raises(ArtefactError, match=r"manifest\.json` is a "):
        verify(folder)


@pytest.mark.parametrize("text", ['{"details":' + "[" * 200_000, "[" * 200_000, "[]", "1", '{"files": {}}', "\0"])
def test_a_manifest_that_makes_no_sense_is_one_error_naming_it(folder, text):
    (folder / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"manifest\.json`"):
        verify(folder)


def test_another_kind_than_the_expected_is_refused_naming_both(folder):
    verify(folder, kind="repository")
    with pytest.raises(ArtefactError, match="is of the kind `repository`, expected `member`"):
        verify(folder, kind="member")


def test_an_empty_folder_is_part_of_an_artefact_or_refused(folder):
    (folder / "ensemble" / "1").mkdir(parents=True)
    with pytest.raises(ArtefactError, match="ensemble/1` is an empty folder that is not in the manifest"):
        verify(folder)
    write_manifest(folder, Manifest("repository", {}))
    verify(folder)
    (folder / "ensemble" / "1").rmdir()
    with pytest.raises(ArtefactError, match="ensemble` is an empty folder"):
        verify(folder)
    (folder / "ensemble").rmdir()
    with pytest.raises(ArtefactError, match="ensemble/1` is missing"):
        verify(folder)


def test_a_seal_breaks_whatever_is_done_to_a_file_even_if_its_time_is_set_back(folder):
    path = folder / "engine" / "1" / "model.onnx"
    before = seal_of(folder)
    assert seal_of(folder) == before
    state = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert seal_of(folder) != before
    before = seal_of(folder)
    (folder / "new").mkdir()
    assert seal_of(folder) != before


def test_a_folder_without_a_readable_manifest_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match=FILE_NAME):
        read_manifest(tmp_path)
    (tmp_path / FILE_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_of_another_format_is_refused(folder):
    path = folder / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}), encoding="utf-8")
    with pytest.raises(ArtefactError, match="format 99"):
        verify(folder)


def test_equal_content_has_an_equal_fingerprint_whatever_its_order():
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_what_an_interrupted_writer_left_is_no_file_of_the_artefact(folder):
    (folder / ".manifest.json.part").write_text("{half")
    verify(folder)
    write_manifest(folder, Manifest("again", {}))
    assert not (folder / ".manifest.json.part").exists()


def test_a_full_disk_is_one_error_and_leaves_the_older_manifest(folder, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SystemFailure, match=r"manifest\.json` cannot be written: .*No space left"):
        write_manifest(folder, Manifest("again", {}))
    assert (folder / "manifest.json").read_text() == before
    assert not (folder / ".manifest.json.part").exists()


def test_within_a_run_a_file_is_hashed_again_only_when_it_was_written_to(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    with hashed_once():
        first = sha256_of(path)
        (tmp_path / "second name").hardlink_to(path)
        assert sha256s_of([path, tmp_path / "second name"]) == [first, first]
        path.write_bytes(b"two")
        os.utime(path, ns=(0, 1))
        assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()
    assert first == hashlib.sha256(b"one").hexdigest()
