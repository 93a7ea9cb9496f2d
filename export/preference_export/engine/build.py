"""Builds a TensorRT engine from an ONNX file with the `tensorrt` Python API alone (10.12 to 11).

The network is strongly typed: dtypes are those of the graph, and nothing here can change them. It does not know where
the graph came from, nor what becomes of the engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from preference_core.artefacts.replacement import replaced_file
from preference_core.ensemble.settings import Build
from preference_core.errors import ArtefactError, SystemFailure
from preference_core.progress import StepDone
from preference_export.engine.operators import refusals
from preference_export.engine.profiles import Profile
from preference_export.engine.runtimes import tensorrt_module

SHOWN_REFUSALS = 20


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
