"""Where an ONNX file keeps its weights: beside itself, in regular files, or it is refused.

An ONNX file names the files of its weights. One that names a path elsewhere, or a link, would have a server read
whatever that leads to.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from preference_core.errors import ArtefactError


def check_external_data(model: Path) -> None:
    """Raises `ArtefactError` naming the first weight that is not inside a regular file of the model's own folder."""
    try:
        stored = onnx.load(model, load_external_data=False)
    except Exception as error:  # protobuf's own errors share no base class with the file system's
        raise ArtefactError(f"`{model}` is not an ONNX file: {error}") from error
    graphs = [stored.graph, *stored.functions]
    for tensor in filter(uses_external_data, (tensor for graph in graphs for tensor in _tensors(graph))):
        try:
            info = ExternalDataInfo(tensor)
        except ValueError as error:
            raise ArtefactError(f"Weight `{tensor.name}` of `{model}` has no place: {error}") from error
        file = model.parent / info.location
        if Path(info.location).name != info.location:
            raise ArtefactError(f"Weight `{tensor.name}` of `{model}` is outside its folder, in `{info.location}`")
        if file.is_symlink() or not file.is_file():
            raise ArtefactError(
                f"Weight `{tensor.name}` of `{model}` is in `{info.location}`, which is not a file there"
            )
        end = (info.offset or 0) + (info.length or 0)
        if end > file.stat().st_size:
            raise ArtefactError(f"Weight `{tensor.name}` of `{model}` ends at byte {end}, behind the end of `{file}`")


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: initializers, and those in the attributes of nodes, graphs below included."""
    if isinstance(graph, onnx.GraphProto):
        yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for below in (attribute.g, *attribute.graphs):
            yield from _tensors(below)
