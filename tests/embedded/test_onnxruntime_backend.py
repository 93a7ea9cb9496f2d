"""The backend `onnxruntime` inside a real tritonserver, asked over real gRPC."""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tritonclient.utils import InferenceServerException

from preference_core.errors import ServerError
from preference_embedded import processes
from preference_embedded.launcher import Options, TritonServer

pytestmark = pytest.mark.slow


def sums_of(client: Any, *ids: int, model: str = "sums") -> list[float]:
    return client.ask(model, {"ids": np.array([ids], np.int32)}, ["sums"])["sums"][0].tolist()  # type: ignore[no-any-return]


def test_requests_that_triton_merged_are_run_one_by_one_and_each_gets_its_own_answer(
    client: Any, wait_until: Callable[..., bool]
) -> None:
    inferences, executions = client.executions("patient")
    texts = [list(range(1, length + 1)) for length in range(1, 25)]
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(lambda ids: sums_of(client, *ids, model="patient"), texts))
    assert answers == [[float(sum(ids)), float(len(ids))] for ids in texts]
    assert wait_until(lambda: client.executions("patient")[0] - inferences == 24), "statistics follow the answers"
    assert client.executions("patient")[1] - executions == 24 / 8


def test_the_longest_request_sets_the_shape_of_a_lone_run(client: Any) -> None:
    assert sums_of(client, 5, 6, 7) == [18.0, 3.0]


def test_dense_requests_of_several_items_come_back_as_they_went(client: Any) -> None:
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_array_equal(client.ask("doubled", {"x": x}, ["y"])["y"], x * 2)


@pytest.mark.parametrize(
    ("model", "name", "values", "message"),
    [
        ("sums", "ids", np.zeros((2, 3), np.int32), "input `ids` has batch 2, expected 1"),
        ("sums", "ids", np.zeros((1, 3), np.int64), "'ids' data-type is 'INT64', but model 'sums' expects 'INT32'"),
        ("sums", "tokens", np.zeros((1, 3), np.int32), "unexpected inference input 'tokens' for model 'sums'"),
        ("sums", "ids", np.full((1, 3), 1000, np.int32), "indices element out of data bounds"),
        ("doubled", "x", np.zeros((1, 4), np.float32), r"shape for input 'x' .* Expected \[-1,3\], got \[1,4\]"),
        ("doubled", "x", np.zeros((9, 3), np.float32), "batch-size must be <= 8 for 'doubled'"),
    ],
)
def test_a_wrong_request_is_refused_by_tensor_value_and_expectation(
    client: Any, model: str, name: str, values: Any, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        client.ask(model, {name: values}, ["sums"])
    assert sums_of(client, 1, 2) == [3.0, 2.0]


def test_one_bad_request_in_a_merged_batch_fails_alone(client: Any) -> None:
    def ask(first: int) -> list[float] | str:
        try:
            return sums_of(client, first, 1)
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [1, 2, 3, 1000, 4, 5, 6, 7]))
    assert [answer[0] for answer in answers if isinstance(answer, list)] == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert "out of data bounds" in answers[3]


def test_memory_stays_flat_over_requests_of_many_lengths(server: TritonServer, client: Any) -> None:
    stub = next(pid for pid, instance in processes.stubs_of(server.pid).items() if instance.startswith("sums"))

    def resident_mib() -> float:
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{stub}/status").read_text())[1]) / 1024  # type: ignore[index]

    lengths = np.random.default_rng(0).integers(1, 20_000, 200)
    for length in lengths[:50]:
        sums_of(client, *[1] * length)
    before = resident_mib()
    for length in lengths:
        sums_of(client, *[1] * length)
    assert resident_mib() - before < 8


@pytest.mark.parametrize(
    ("model", "replace", "message"),
    [
        (b"no model", ("", ""), "model.onnx` is not a model that ONNX Runtime can load"),
        (None, ("", ""), "model.onnx` is missing"),
        ("sums", ("TYPE_FP32", "TYPE_FP16"), "output `sums` is TYPE_FP16, the model has tensor(float)"),
        ("sums", ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "BATCH_NEW"), "config.pbtxt: .*BATCH_NEW"),
    ],
)
def test_a_model_that_does_not_load_stops_the_server_with_one_clear_error(
    tmp_path: Path,
    hasty: Callable[..., Options],
    write_model: Callable[..., Path],
    models: Mapping[str, onnx.ModelProto],
    configs: Mapping[str, str],
    model: bytes | str | None,
    replace: tuple[str, str],
    message: str,
) -> None:
    content = models[model] if isinstance(model, str) else model
    write_model(tmp_path / "repository", "sums", configs["sums"].replace(*replace), content)
    server = TritonServer(hasty(tmp_path / "repository", log_file=tmp_path / "server.log"))
    with pytest.raises(ServerError, match=r"The server did not start: Model `sums`: .*") as caught:
        server.start()
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), caught.value.message)
    assert "\n" not in caught.value.message
    assert str(tmp_path / "server.log") in str(caught.value.hint)
