"""What figures depend on: the machine, versions, and how fast ONNX Runtime multiplies matrices here."""

import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")
#: Rows, inputs and outputs of one product: those of the members' widest layers.
GEMM = (1024, 512, 1792)
GEMM_SECONDS = 2.0


def machine() -> dict[str, object]:
    """Processor, memory and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    return {
        "processor": f"{facts.get('model name', '')}, family {facts.get('cpu family')}, model {facts.get('model')}",
        "cores": cores(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def load() -> float:
    """Processes that wanted to run in the last minute: above the number of cores, others are at work."""
    return os.getloadavg()[0]


def gemm_rate(seconds: float = GEMM_SECONDS) -> float:
    """Multiplications and additions per second of ONNX Runtime's FP32 GEMM, on each core by one thread of its own."""
    rows, inputs, outputs = GEMM
    weights = np.random.default_rng(0).standard_normal((inputs, outputs), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.ones((rows, inputs), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = onnx.ModelProto.SerializeToString(model)
    sessions = [onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]) for _ in range(cores())]

    def count(session: onnxruntime.InferenceSession) -> int:
        runs, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            session.run(None, {"x": x})
            runs += 1
        return runs

    with ThreadPoolExecutor(len(sessions)) as pool:
        start = time.perf_counter()
        runs = sum(pool.map(count, sessions))
        return 2 * rows * inputs * outputs * runs / (time.perf_counter() - start)
