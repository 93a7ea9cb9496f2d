"""The ONNX engine without a server: what it answers, what it refuses to load."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from preference_core.errors import ArtefactError, ConfigError
from preference_embedded.batching import RequestError
from preference_embedded.engine_config import engine_config
from preference_embedded.session import Session

RAGGED: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": "ids", "data_type": "TYPE_INT32", "dims": [-1], "allow_ragged_batch": True}],
    "output": [{"name": "sums", "data_type": "TYPE_FP32", "dims": [2]}],
    "batch_input": [
        {
            "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
            "target_name": ["bounds"],
            "data_type": "TYPE_INT32",
            "source_input": ["ids"],
        },
        {
            "kind": "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
            "target_name": ["longest"],
            "data_type": "TYPE_INT32",
            "source_input": ["ids"],
        },
    ],
}
DENSE: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
}

Load = Callable[..., Session]


@pytest.fixture
def load(tmp_path: Path, models: Mapping[str, onnx.ModelProto]) -> Load:
    """`load(config, model name, changes to the config)`: an engine on that model."""

    def make(config: dict[str, Any], model: str, warnings: list[str] | None = None, **changes: Any) -> Session:
        onnx.save(models[model], tmp_path / "model.onnx")
        table = json.loads(json.dumps(config)) | changes
        return Session.load(table, tmp_path, warn=([] if warnings is None else warnings).append)

    return make


def ids(*values: int) -> dict[str, Any]:
    return {"ids": np.array([values], np.int32)}


def test_a_ragged_request_gets_the_sum_of_its_ids_and_sets_the_shape_of_its_run(load: Load) -> None:
    engine = load(RAGGED, "sums")
    assert engine.run(ids(1, 2, 3))["sums"].tolist() == [[6.0, 3.0]]
    assert engine.run(ids(10))["sums"].tolist() == [[10.0, 1.0]]


def test_a_dense_request_of_several_items_has_a_row_for_each(load: Load) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(load(DENSE, "doubled").run({"x": x})["y"], x * 2)


def test_a_request_that_the_model_cannot_run_is_an_error_and_the_next_one_is_answered(load: Load) -> None:
    engine = load(RAGGED, "sums")
    with pytest.raises(Exception, match="indices element out of data bounds"):
        engine.run(ids(1000))
    with pytest.raises(RequestError, match="batch 2, expected 1"):
        engine.run({"ids": np.zeros((2, 3), np.int32)})
    assert engine.run(ids(2))["sums"][0, 0] == 2.0


def test_an_output_without_a_row_per_item_is_an_error_that_names_it(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    opset = helper.make_opsetid("", 20)
    onnx.save(
        helper.make_model(helper.make_graph([node], "graph", [x], [y]), opset_imports=[opset], ir_version=10),
        tmp_path / "model.onnx",
    )
    session = Session.load(DENSE, tmp_path, warn=pytest.fail)
    with pytest.raises(ValueError, match=r"output `y` has shape \[4, 3\], expected \[2, ...\]"):
        session.run({"x": np.zeros((2, 3), np.float32)})


def test_a_model_without_batching_gets_its_inputs_as_they_are(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    config = {
        "default_model_filename": "other.onnx",
        "input": [{"name": "x", **tensor}],
        "output": [{"name": "y", **tensor}],
    }
    answer = Session.load(config, tmp_path, warn=pytest.fail).run({"x": np.arange(3, dtype=np.float32)})
    assert answer["y"].tolist() == [0.0, -1.0, -2.0]  # type: ignore[index]


def changed(config: Mapping[str, Any], section: str, **changes: Any) -> dict[str, Any]:
    return {section: [{**config[section][0], **changes}, *config[section][1:]]}


@pytest.mark.parametrize(
    ("config", "model", "changes", "message"),
    [
        (RAGGED, "sums", changed(RAGGED, "input", data_type="TYPE_INT64"), "input `ids` is TYPE_INT64, the model has"),
        (RAGGED, "sums", changed(RAGGED, "input", name="tokens"), r"inputs \['bounds', 'longest', 'tokens'\], the mod"),
        (
            RAGGED,
            "sums",
            changed(RAGGED, "output", dims=[3]),
            r"`sums` has shape \[-1, 2\] in the model, expected \[-1, 3",
        ),
        (RAGGED, "sums", changed(RAGGED, "output", name="logits"), r"output `logits` is not in the model, which has"),
        (
            RAGGED,
            "sums",
            {"batch_input": []},
            r"feeds the inputs \['ids'\], the model has \['bounds', 'ids', 'longest'\]",
        ),
        (RAGGED, "sums", changed(RAGGED, "batch_input", kind="BATCH_NEW"), "batch_input BATCH_NEW TYPE_INT32 from"),
        (
            DENSE,
            "doubled",
            changed(DENSE, "input", allow_ragged_batch=True),
            r"`x` has shape \[-1, 3\] in the model, exp",
        ),
        (DENSE, "doubled", changed(DENSE, "input", dims=[4]), r"input `x` has shape \[-1, 3\] in the model, expected"),
        (
            DENSE,
            "doubled",
            changed(DENSE, "output", data_type="TYPE_STRING"),
            "TYPE_STRING, which the CPU runtime does",
        ),
        (DENSE, "doubled", changed(DENSE, "input", reshape={"shape": [3]}), "`reshape` of tensor `x` is not supported"),
        (DENSE, "doubled", {"batch_output": [{}]}, "`batch_output` is not supported"),
        (
            DENSE,
            "doubled",
            {"parameters": {"execution_mode": {"string_value": "2"}}},
            "`execution_mode` is `2`, expected 0",
        ),
        (
            DENSE,
            "doubled",
            {"parameters": {"intra_op_thread_count": {"string_value": "many"}}},
            "`intra_op_thread_count` is `many`, expected a whole number",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(
    load: Load, config: dict[str, Any], model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(config, model, **changes)


@pytest.mark.parametrize(("parameters", "arena"), [({}, True), ({"enable_mem_arena": "0"}, False)])
def test_the_arena_is_on_unless_the_configuration_switches_it_off(parameters: dict[str, str], arena: bool) -> None:
    config = engine_config(DENSE | {"parameters": {name: {"string_value": text} for name, text in parameters.items()}})
    assert config.session_options(pytest.fail).enable_cpu_mem_arena == arena


def test_settings_without_effect_are_named_in_a_warning(load: Load) -> None:
    warnings: list[str] = []
    silent = ("intra_op_thread_count", "members", "labels")
    parameters = {name: {"string_value": "1"} for name in (*silent, "cudnn_conv_algo_search")}
    load(DENSE, "doubled", warnings, parameters=parameters, optimization={"graph": {"level": 2}})
    assert warnings == ["parameter `cudnn_conv_algo_search` has no meaning for ONNX Runtime on a CPU"]


def test_a_missing_and_a_broken_model_file_are_refused_with_their_path(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"model\.onnx` is missing"):
        Session.load(DENSE, tmp_path, warn=pytest.fail)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtefactError, match=r"model\.onnx` is not a model that ONNX Runtime can load"):
        Session.load(DENSE, tmp_path, warn=pytest.fail)
