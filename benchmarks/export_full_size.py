"""Measures the export of full-size members: peak resident memory and time, beside the time of copying the same bytes.

Each model is written with invented weights, copied, exported with each adapter, and removed again. Parity is not
measured here: the original model would not fit the memory that this shows to be enough.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from full_size import tensor_shapes, write_adapter, write_base
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig

from preference_core.ensemble.published import BASES
from preference_export.checkpoint.shapes import published_parameters

MODELS = {"gemma-2-9b": "google/gemma-2-9b-it", "llama-3-8b": "meta-llama/Meta-Llama-3-8B-Instruct"}
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Per model: adapters by name, as the adapted modules and the first adapted layer.
ADAPTERS = {
    "gemma-2-9b": {"q,k,v of layers 16-41": (("q_proj", "k_proj", "v_proj"), 16), "all linear": (EVERY_LINEAR, 0)},
    "llama-3-8b": {"o,v": (("o_proj", "v_proj"), 0), "all linear": (EVERY_LINEAR, 0)},
}
PACKAGES = ("torch", "transformers", "peft", "safetensors", "onnx-ir", "onnxscript")
GIB = 1024**3


@dataclass(frozen=True)
class Measured:
    """One export. Times are wall time with everything flushed to the disk; memory is the child's `ru_maxrss`."""

    model: str
    adapter: str
    precision: str
    parameters: int
    bytes_in: int
    bytes_out: int
    copy_s: float
    export_s: float
    processor_s: float
    peak_bytes: int


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"Any of: {', '.join(MODELS)}.")] = None,
    precision: Annotated[str, typer.Option(help="Precision of the exported members.")] = "fp16",
    folder: Annotated[Path, typer.Option(help="Where to work; needs twice the size of a base.")] = Path("build/bench"),
) -> None:
    """Prints one line per export and writes them to FOLDER/export.json."""
    results: list[Measured] = []
    for name in model or list(MODELS):
        work = folder / "export" / name
        shutil.rmtree(work, ignore_errors=True)
        try:
            results.extend(_measure(name, precision, work))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    report = {"machine": machine(), "results": [asdict(result) for result in results]}
    (folder / "export.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, object]:
    """What the figures depend on."""
    return {
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def _measure(name: str, precision: str, work: Path) -> list[Measured]:
    """Runs everything for one model in the empty folder `work`."""
    config = AutoConfig.for_model(**BASES[MODELS[name]])
    base = work / "base"
    parameters = write_base(base, config)
    _flush(base)
    if parameters != published_parameters(MODELS[name]):
        raise SystemExit(f"{name} has {parameters} parameters, expected {published_parameters(MODELS[name])}")
    write_tokenizer(base)
    results = []
    for number, (adapter, (modules, first)) in enumerate(ADAPTERS[name].items()):
        layers = range(first, config.num_hidden_layers)
        write_adapter(work / f"adapter{number}", tensor_shapes(config), modules, layers)
        copy_s = _copied(base, work / "copy")
        settings = work / "bench.toml"
        settings.write_text(_settings(f"adapter{number}", precision), encoding="utf-8")
        _forget(base)
        export_s, processor_s, peak = _exported(settings.name, work)
        output = work / "build" / "bench" / "members" / "member"
        result = Measured(
            model=name,
            adapter=adapter,
            precision=precision,
            parameters=parameters,
            bytes_in=_size(base),
            bytes_out=_size(output),
            copy_s=copy_s,
            export_s=export_s,
            processor_s=processor_s,
            peak_bytes=peak,
        )
        shutil.rmtree(work / "build")
        typer.echo(_line(result))
        results.append(result)
    return results


def _exported(config: str, work: Path) -> tuple[float, float, int]:
    """Wall and processor time in seconds, and peak resident memory in bytes, of `preference-export onnx`."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "preference_export.app", "onnx", config], cwd=work)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"The export failed with status {os.waitstatus_to_exitcode(status)}")
    _flush(work / "build")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _copied(source: Path, target: Path) -> float:
    """Seconds that a copy of the files takes, read from the disk and flushed to it."""
    _forget(source)
    start = time.monotonic()
    shutil.copytree(source, target)
    _flush(target)
    elapsed = time.monotonic() - start
    shutil.rmtree(target)
    return elapsed


def _flush(folder: Path) -> None:
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _forget(folder: Path) -> None:
    """Drops the files from the page cache, so that every measurement reads them from the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _settings(adapter: str, precision: str) -> str:
    return f"""name = "bench"

[[member]]
name = "member"
base = "base"
adapter = "{adapter}"
template = "gemma"
special_tokens = "template"
max_tokens = 2048
precision = "{precision}"
"""


def write_tokenizer(folder: Path) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["<bos>", "<eos>", *sorted(alphabet)]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _line(result: Measured) -> str:
    limit_s = 2 * result.copy_s + 300
    return (
        f"{result.model}, adapter on {result.adapter}, {result.precision}: {result.bytes_in / 1e9:.1f} GB in, "
        f"{result.bytes_out / 1e9:.1f} GB out; peak {result.peak_bytes / GIB:.2f} GiB; "
        f"{result.export_s:.0f} s ({result.processor_s:.0f} s of CPU time), copy {result.copy_s:.0f} s, "
        f"limit {limit_s:.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
