import errno
import json

import pytest

from preference_core.errors import ArtefactError, SystemFailure
from preference_core.manifest import FILE_NAME, fingerprint, read_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "engine" / "1").mkdir(parents=True)
    (tmp_path / "engine" / "1" / "model.onnx").write_bytes(b"graph" * 1000)
    (tmp_path / "engine" / "config.pbtxt").write_text("name: 'engine'\n", encoding="utf-8")
    write_manifest(tmp_path, "repository", versions={"onnx": "1"}, parity={"max_logit_difference": 1e-6})
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
    write_manifest(folder, "again")
    assert not (folder / ".manifest.json.part").exists()


def test_a_full_disk_is_one_error_and_leaves_the_older_manifest(folder, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SystemFailure, match=r"manifest\.json` cannot be written: .*No space left"):
        write_manifest(folder, "again")
    assert (folder / "manifest.json").read_text() == before
    assert not (folder / ".manifest.json.part").exists()
