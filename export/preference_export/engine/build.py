"""Builds a TensorRT engine from an ONNX file with the `tensorrt` Python API alone (10.12 to 11).

The network is strongly typed: dtypes are those of the graph, and nothing here can change them. It does not know where
the graph came from, nor what becomes of the engine.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from preference_core import tensors
from preference_core.artefacts.replacement import replaced_file
from preference_core.ensemble.settings import Build, Member
from preference_core.errors import ArtefactError, SystemFailure, UserError
from preference_core.progress import StepDone
from preference_export.engine.operators import refusals

#: Sequences of full length whose tokens the latency profile admits: one in both orders, and a little company.
LATENCY_SEQUENCES = 4
NO_GPU = "none"
SHOWN_REFUSALS = 20


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest length of each input; TensorRT picks its kernels for the usual one."""

    name: str
    lengths: Mapping[str, tuple[int, int, int]]


def profiles_of(max_tokens: int, max_batch_size: int) -> tuple[Profile, ...]:
    """A latency profile (tuned for one sequence of full length) and a throughput profile (for a full batch).

    Triton chooses by the tokens of a batch alone: of the profiles that admit as many, the one whose usual number is
    nearest. So the latency profile is bounded by tokens, and admits as many sequences as a batch may have: sixteen
    short ones go there as well. The last profile admits every batch. There is only one where batches are small.
    """
    few = min(LATENCY_SEQUENCES, max_batch_size)
    latency = _profile("latency", max_tokens, 1, max_batch_size, few * max_tokens)
    if few == max_batch_size:
        return (latency,)
    whole = max_batch_size * max_tokens
    return latency, _profile("throughput", max_tokens, max_batch_size, max_batch_size, whole)


def _profile(name: str, max_tokens: int, usual: int, most: int, most_tokens: int) -> Profile:
    longest = max(1, max_tokens // 2) if usual > 1 else max_tokens
    return Profile(
        name,
        {
            tensors.INPUT_IDS.name: (1, usual * longest, most_tokens),
            tensors.CU_SEQLENS.name: (2, usual + 1, most + 1),
            tensors.MAX_SEQLEN.name: (1, longest, max_tokens),
        },
    )


def tensorrt_module() -> Any:
    """The `tensorrt` package; a `UserError` where it is not installed."""
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(
            f"TensorRT is not installed here: {error}",
            hint='Install it with `pip install "preference-export[engine]"`.',
        ) from error
    return tensorrt


def gpu_architecture() -> str:
    """Compute capability of the GPU in use, such as `sm_90`; `none` on a machine without one."""
    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def use_gpu_of(member: Member) -> None:
    """Builds and runs on the first of the GPUs that the member is served on; without any GPU there is nothing to do."""
    if torch.cuda.is_available() and member.gpus:
        if member.gpus[0] >= torch.cuda.device_count():
            raise UserError(
                f"`gpus` of `{member.name}` begins with {member.gpus[0]}; this machine has {torch.cuda.device_count()}",
                hint="Number them from 0.",
            )
        torch.cuda.set_device(member.gpus[0])


def check_operators(path: Path) -> None:
    """Raises `ArtefactError` with all that TensorRT would refuse of an ONNX file. Reads no weights."""
    found = refusals(onnx.load(path, load_external_data=False))
    if found:
        more = f"\n  and {len(found) - SHOWN_REFUSALS} more" if len(found) > SHOWN_REFUSALS else ""
        listed = "".join(f"\n  {sentence}" for sentence in found[:SHOWN_REFUSALS])
        raise ArtefactError(f"TensorRT would refuse `{path}`:{listed}{more}")


def build_engine(
    source: Path, target: Path, profiles: tuple[Profile, ...], build: Build, cache: Path, progress: StepDone
) -> list[str]:
    """Writes the engine of the ONNX file `source` (external data beside it) to `target`; returns TensorRT's warnings.

    `cache` keeps what TensorRT measured, for the next build; it is made if need be. Raises `ArtefactError` with every
    error of the parser, `SystemFailure` when the build fails.
    """
    check_operators(source)
    trt = tensorrt_module()
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        listed = "".join(f"\n  `{e.node_name()}` ({e.node_operator()}): {e.desc()}" for e in errors)
        raise ArtefactError(f"TensorRT {trt.__version__} cannot read `{source}`:{listed}")
    settings = builder.create_builder_config()
    settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, build.workspace_mebibytes * 1024**2)
    settings.builder_optimization_level = build.optimisation_level
    settings.clear_flag(trt.BuilderFlag.TF32)  # on unless cleared: FP32 with a mantissa of 10 bits
    settings.progress_monitor = _monitor(trt, progress)
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, lengths in profile.lengths.items():
            shapes.set_shape(name, *((length,) for length in lengths))
        settings.add_optimization_profile(shapes)
    with _timing_cache(settings, cache):
        plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise SystemFailure(f"TensorRT could not build an engine from `{source}`: {'; '.join(log.errors[-3:])}")
    with target.open("wb") as file:
        file.write(plan)
    return list(log.warnings)


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for the message that is about to be raised, and each warning once."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING and message not in self.warnings:
                self.warnings.append(message)

    return Logger()


def _monitor(trt: Any, progress: StepDone) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells `progress` of the outermost phase of the build only; the inner ones come and go within it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.steps:
                progress(phase_name, self.steps[phase_name], self.steps.pop(phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                progress(phase_name, step + 1, self.steps[phase_name])
            return True

    return Monitor()


@contextmanager
def _timing_cache(settings: Any, path: Path) -> Iterator[None]:
    """A cache that TensorRT does not accept (another version's or GPU's) is replaced by an empty one."""
    content = path.read_bytes() if path.is_file() else b""
    cache = settings.create_timing_cache(content)
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        cache = settings.create_timing_cache(b"")
        settings.set_timing_cache(cache, ignore_mismatch=False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as part:
        part.write_bytes(memoryview(settings.get_timing_cache().serialize()))
