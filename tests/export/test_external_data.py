"""An ONNX file whose weights are anywhere but beside it never reaches a repository."""

from dataclasses import replace

import onnx
import pytest

from preference_core.artefacts.manifest import read_manifest, write_manifest
from preference_core.errors import ArtefactError
from preference_export.graph.external_data import check_external_data


@pytest.fixture
def member(project):
    """The folder of an exported and checked member."""
    return project.config.folders.exported("gemma")


def point(model, **places):
    """Says of the first external weight that it lies elsewhere."""
    proto = onnx.load(model, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    for entry in tensor.external_data:
        entry.value = str(places.get(entry.key, entry.value))
    model.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/model.onnx.data"])
def test_weights_outside_the_folder_are_refused_though_the_manifest_agrees(project, member, location):
    point(member / "model.onnx", location=location)
    manifest = read_manifest(member)
    write_manifest(member, replace(manifest, files={}))
    with pytest.raises(ArtefactError, match=rf"Weight `\S+` of .*model\.onnx` is outside its folder, in `{location}`"):
        project.run("repository")


def test_weights_behind_a_link_are_refused(project, member, tmp_path):
    data = member / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=r"model\.onnx\.data` is a symbolic link"):
        project.run("repository")
    with pytest.raises(ArtefactError, match=r"is in `model\.onnx\.data`, which is not a file there"):
        check_external_data(member / "model.onnx")


def test_weights_behind_the_end_of_their_file_are_refused(member):
    point(member / "model.onnx", offset=10**9)
    with pytest.raises(ArtefactError, match=r"ends at byte 1\d{9}, behind the end of"):
        check_external_data(member / "model.onnx")


def test_weights_outside_the_folder_are_found_in_constants_and_graphs_below(tmp_path):
    tensor = onnx.TensorProto(name="hidden", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    below = onnx.helper.make_graph([constant], "below", [], [output])
    branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=below, else_branch=below)
    for number, node in enumerate((constant, branch)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output])).SerializeToString())
        with pytest.raises(ArtefactError, match=r"`hidden` of .* is outside its folder, in `\.\./secret`"):
            check_external_data(path)


def test_a_weight_at_no_possible_place_is_refused(member):
    point(member / "model.onnx", offset=-1)
    with pytest.raises(ArtefactError, match="has no place"):
        check_external_data(member / "model.onnx")


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff not a graph")
    with pytest.raises(ArtefactError, match="is not an ONNX file"):
        check_external_data(tmp_path / "model.onnx")
