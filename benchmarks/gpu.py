"""One GPU, one full-size member with random weights: Transformers, the packed decoder in ONNX Runtime, TensorRT.

`gpu.py` takes one model, so that it ends within ten minutes; contestants run one after the other, since the memory of
a GPU may not hold two. `--small --device cpu` is a dry form that shows that it works. It has never run on a GPU.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from contestants import Answer, Peer
from ensembles import Ensemble, export, operations, random_ids
from export_full_size import MODELS, write_tokenizer
from full_size import write_base
from machine import gemm_rate, machine
from report import markdown, write
from transformers import AutoConfig, AutoModelForSequenceClassification

from preference_core.ensemble.published import BASES

PEERS = Path(__file__).resolve().parent / "peers"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1024,
}
#: Probabilities of 16-bit products, of unlike kernels, with random weights.
MAX_DIFFERENCE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "fp8": 0.3}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.bfloat16}
MATRIX = 8192
PACK = 4


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Multiplications and additions per second of large products."""
    if device == "cpu":
        return gemm_rate()
    left, right = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    for count in (3, 30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            left @ right
        torch.cuda.synchronize()
    return 2 * MATRIX**3 * 30 / (time.perf_counter() - start)


def memory_bytes(device: str, process: int) -> int:
    """What a process has taken: of the GPU now (all processes together), or of this machine at most."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return total - free
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main(
    model: Annotated[str, typer.Option(help=f"One of: {', '.join(MODELS)}.")] = "gemma-2-9b",
    precision: Annotated[Literal["fp32", "fp16", "bf16", "fp8"], typer.Option(help="Of the GEMMs.")] = "bf16",
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="Where.")] = "cuda",
    small: Annotated[bool, typer.Option(help="Two narrow layers instead of the published shape.")] = False,
    sequences: Annotated[int, typer.Option(help="Random sequences of up to 1,024 tokens.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Timed runs of each.", min=1)] = 3,
    folder: Annotated[Path, typer.Option(help="Where everything is made.")] = Path("build/bench/gpu"),
) -> None:
    """Prints a table and writes FOLDER/bench.json and bench.html."""
    shape = BASES[MODELS[model]] | (SMALL if small else {})
    if small and shape["model_type"] == "gemma2":
        shape = shape | {"query_pre_attn_scalar": SMALL["head_dim"]}
    checkpoint = folder / "checkpoints" / model.split("-")[0]
    shutil.rmtree(folder, ignore_errors=True)
    config = AutoConfig.for_model(**shape, num_labels=3, pad_token_id=0)
    write_base(checkpoint, config, AutoModelForSequenceClassification)
    write_tokenizer(checkpoint)
    ids = random_ids(sequences, 1024)
    gpus = (0,) if device == "cuda" else ()
    rate = matrix_rate(device, DTYPES[precision])
    needed = operations(checkpoint, [len(row) for row in ids])
    rows: list[list[str]] = []
    reference: Answer | None = None
    for name, make in _contestants(folder, checkpoint, precision, device, gpus, ids):
        typer.echo(f"loading {name}", err=True)
        contestant = make()
        contestant.start()
        try:
            answer = contestant.run(min(8, sequences))
            reference = reference or answer
            difference = float(np.abs(answer.probabilities - reference.probabilities).max())
            if not difference <= MAX_DIFFERENCE[precision]:
                raise SystemExit(f"{name} differs by {difference:.2g}, limit {MAX_DIFFERENCE[precision]}")
            took = [contestant.run().seconds for _ in range(rounds)]
            each = contestant.run(min(16, sequences), one_by_one=True).each
            memory = memory_bytes(device, contestant.processes["member"].pid)
        finally:
            contestant.stop()
        tokens = sum(len(row) for row in ids)
        rows.append(
            [
                name,
                f"{tokens / median(took):.0f}",
                f"{needed / median(took) / rate:.0%}",
                f"{1e3 * median(each):.1f}",
                f"{memory / 1e9:.1f}",
                f"{difference:.1e}",
            ]
        )
    title = f"{model}{' (small)' if small else ''}, {precision}, {device}; products: {rate / 1e12:.2f} T operations/s"
    columns = ("who", "tokens/s", "of that rate", "p50 of one sequence, ms", "memory, GB", "max difference")
    table = (title, columns, rows)
    typer.echo(markdown(table))
    facts = machine() | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})
    write(folder, facts, [], [table], {})


def _contestants(
    folder: Path, checkpoint: Path, precision: str, device: str, gpus: tuple[int, ...], ids: Sequence[Any]
) -> list[tuple[str, Callable[[], Peer]]]:
    """By name: how to make it."""
    python = Path(sys.executable)

    def peer(name: str, model: Path, *words: str) -> Peer:
        return Peer(name, folder, PEERS / name, python, {"member": model}, {"member": ids}, words)

    def exported(engine: str) -> Ensemble:
        ensemble = Ensemble(engine, {"member": checkpoint.name}, precision, 1024, 1, engine, gpus)
        export(folder, ensemble, "engine" if engine == "tensorrt" else "onnx")
        return ensemble

    def transformers() -> Peer:
        dtype = str(DTYPES[precision]).removeprefix("torch.")
        return peer("transformers", checkpoint, "sorted", device, dtype)

    def onnxruntime() -> Peer:
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        return peer("engine", exported("onnxruntime").model(folder, "member"), provider, str(PACK))

    def tensorrt() -> Peer:
        exported("tensorrt")
        return peer("tensorrt", folder / "build/tensorrt/engines/member/model.plan", str(PACK))

    found: list[tuple[str, Callable[[], Peer]]] = [
        ("Transformers, batches of 4, sorted", transformers),
        (f"packed decoder in ONNX Runtime, packs of {PACK}", onnxruntime),
    ]
    if device == "cuda" and find_spec("tensorrt"):
        found.append((f"TensorRT engine, packs of {PACK}", tensorrt))
    return found


if __name__ == "__main__":
    typer.run(main)
