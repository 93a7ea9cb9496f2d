"""The length baseline as an engine: a table of logits, indexed by the one token id of each battle.

The graph has the inputs and the output of every other member, so that Triton batches and runs it like one.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from preference_core import tensors
from preference_core.battles.lengths import LengthBuckets
from preference_export.artefacts.names import MODEL_FILE
from preference_export.graph.write import OPSET

#: The ONNX format version that goes with `OPSET`.
IR_VERSION = 10


def write_onnx(folder: Path, buckets: LengthBuckets) -> dict[str, str]:
    """Writes `model.onnx` into `folder`; returns its SHA-256 by name.

    Like every other engine it pools each sequence's last token: here the only one, the bucket.
    """
    content = _graph(buckets).SerializeToString(deterministic=True)
    (folder / MODEL_FILE).write_bytes(content)
    return {MODEL_FILE: hashlib.sha256(content).hexdigest()}


def _graph(buckets: LengthBuckets) -> onnx.ModelProto:
    table = buckets.log_probabilities()
    logits = tensors.logits(table.shape[1])
    constants: dict[str, npt.NDArray[Any]] = {
        "table": table,
        "axis": np.array(0, dtype=np.int64),
        "one": np.array(1, dtype=np.int32),
    }
    nodes = [
        helper.make_node("CumSum", [tensors.LENGTHS.name, "axis"], ["ends"], "pool/CumSum"),
        helper.make_node("Sub", ["ends", "one"], ["last"], "pool/Sub"),
        helper.make_node("Gather", [tensors.INPUT_IDS.name, "last"], ["bucket"], "pool/Gather"),
        helper.make_node("Gather", ["table", "bucket"], [logits.name], "table/Gather"),
    ]
    graph = helper.make_graph(
        nodes,
        "length_buckets",
        [
            helper.make_tensor_value_info(tensor.name, TensorProto.INT32, [size])
            for tensor, size in zip(tensors.ENGINE_INPUTS, ("tokens", "sequences", "longest"), strict=True)
        ],
        [helper.make_tensor_value_info(logits.name, TensorProto.FLOAT, ["sequences", table.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model
