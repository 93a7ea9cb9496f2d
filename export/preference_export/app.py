"""The command `preference-export`: stages from configuration to model repository.

Results go to stdout, progress and errors to stderr. What a stage does is in the modules it calls.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from preference_core.errors import PreferenceError, describe
from preference_core.manifest import read_manifest
from preference_core.settings import Config, Member, load_config
from preference_core.structure import plain
from preference_export import member as members
from preference_export import repository as repositories
from preference_export.allocation import freed_memory_kept
from preference_export.calibration import calibrate_member, calibration_folder
from preference_export.check import CannotCheckError, check_member
from preference_export.engine import Progress as EngineProgress
from preference_export.engines import build_member_engine, engine_folder
from preference_export.folders import replaced
from preference_export.hf_checkpoint import write_checkpoint
from preference_export.onnx_export import Report
from preference_export.plan import plan_of, text_of_plan
from preference_export.precision import check_supported, recipe_of
from preference_export.source import Source, source_of

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="From checkpoints to Triton."
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The ensemble's TOML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Programs = Annotated[Path, typer.Option("--programs", help="Folder with the Python models' programs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; fetch, read and write nothing.")]
Unchecked = Annotated[
    bool, typer.Option("--unchecked", help="Serve what could not be compared with the original model here.")
]
PROGRAMS = Path("model_repository")


@dataclass
class Run:
    """One invocation: its configuration, and the results it will print."""

    config: Config
    as_json: bool
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, stage: str, name: str, *, changed: bool, folder: Path, **more: Any) -> None:
        """Notes a result; without `--json` it is printed at once."""
        self.results.append({"stage": stage, "name": name, "changed": changed, "folder": folder.as_posix(), **more})
        if not self.as_json:
            brief = {key: value for key, value in more.items() if not isinstance(value, dict)}
            facts = "".join(f", {key.replace('_', ' ')} {_shown(value)}" for key, value in brief.items())
            typer.echo(f"{stage:<10} {name:<16} {'written' if changed else 'up to date'}: {folder.as_posix()}{facts}")

    def finish(self) -> None:
        """Prints the JSON object, if that was asked for."""
        if self.as_json:
            typer.echo(json.dumps({"ensemble": self.config.name, "results": self.results}, indent=1))


def main() -> None:
    """Entry point: a `PreferenceError` becomes two lines on stderr and its exit code."""
    try:
        app()
    except PreferenceError as error:
        typer.echo(describe(error), err=True)
        sys.exit(error.exit_code)


@app.command()
def merge(config: ConfigPath, as_json: AsJson = False) -> None:
    """Write each member's merged Hugging Face checkpoint to build/NAME/merged."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    for member in run.config.members:
        if member.kind == "length_buckets":
            continue
        source = source_of(member)
        opened = members.open_member(run.config, member, source)
        target = run.config.build_folder / "merged" / member.name
        with freed_memory_kept(), _progress(f"merge {member.name}") as (started, report), replaced(target) as folder:
            started(opened.merged_bytes)
            write_checkpoint(folder, source.base.folder, opened.weights, run.config.labels, opened.recipe.dtype, report)
        run.add("merge", member.name, changed=True, folder=target, weight_bytes=opened.merged_bytes)
    run.finish()


@app.command()
def calibrate(config: ConfigPath, as_json: AsJson = False) -> None:
    """Measure the ranges of activations that static INT8 and FP8 need, on the sample battles."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    for member in run.config.members:
        _calibrate(run, member, source_of(member))
    run.finish()


@app.command()
def engine(config: ConfigPath, as_json: AsJson = False) -> None:
    """Build the TensorRT engine of each exported member that is served by one."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    for member in run.config.members:
        _engine(run, member)
    run.finish()


@app.command()
def onnx(config: ConfigPath, as_json: AsJson = False) -> None:
    """Export each member to ONNX with its tokenizer, unless that is up to date."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    for member in run.config.members:
        _onnx(run, member, source_of(member))
    run.finish()


@app.command()
def check(config: ConfigPath, as_json: AsJson = False) -> None:
    """Compare each exported member with the original model, again, and record the result."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    for member in run.config.members:
        _check(run, member, source_of(member), again=True)
    run.finish()


@app.command()
def repository(
    config: ConfigPath, programs: Programs = PROGRAMS, unchecked: Unchecked = False, as_json: AsJson = False
) -> None:
    """Assemble the Triton model repository from checked members."""
    run = Run(load_config(config), as_json)
    check_supported(run.config)
    _repository(run, programs, unchecked)
    run.finish()


@app.command(name="all")
def all_stages(
    config: ConfigPath,
    programs: Programs = PROGRAMS,
    unchecked: Unchecked = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Calibrate, export, build, check and assemble, as needed; stages whose inputs have not changed are skipped."""
    run = Run(load_config(config, include_may_be_missing=dry_run), as_json)
    check_supported(run.config)
    if dry_run:
        plans = [plan_of(run.config, member) for member in run.config.members]
        table = {"ensemble": run.config.name, "plan": [plain(plan) for plan in plans]}
        typer.echo(json.dumps(table, indent=1) if as_json else text_of_plan(plans))
        return
    for member in run.config.members:
        source = source_of(member)
        _calibrate(run, member, source)
        _onnx(run, member, source)
        _engine(run, member)
        try:
            _check(run, member, source, again=False)
        except CannotCheckError as error:
            if not unchecked:
                raise
            typer.echo(f"note: {error.message}", err=True)
    _repository(run, programs, unchecked)
    run.finish()


@app.command()
def rollback(config: ConfigPath, as_json: AsJson = False) -> None:
    """Put the repository before the last change back in place (a second time: forward again)."""
    run = Run(load_config(config), as_json)
    version = repositories.roll_back(run.config)
    run.add("rollback", run.config.name, changed=True, folder=run.config.repository, version=version)
    run.finish()


@app.command()
def sources(
    config: ConfigPath,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")],
    programs: Programs = PROGRAMS,
    as_json: AsJson = False,
) -> None:
    """Write the repository's configurations and programs only, without engines."""
    run = Run(load_config(config), as_json)
    written = repositories.write_sources(run.config, programs, output)
    run.add("sources", run.config.name, changed=True, folder=output, files=len(written))
    run.finish()


def _onnx(run: Run, member: Member, source: Source) -> None:
    with freed_memory_kept(), _progress(f"onnx {member.name}") as (started, report):
        changed = members.export_member(run.config, member, source, started, report)
    folder = members.folder_of(run.config, member)
    weight_bytes = read_manifest(folder).details["weight_bytes"]
    run.add("onnx", member.name, changed=changed, folder=folder, weight_bytes=weight_bytes)


def _calibrate(run: Run, member: Member, source: Source) -> None:
    if recipe_of(member).calibrated:
        changed = calibrate_member(run.config, member, source, lambda: members.original_of(run.config, member, source))
        run.add("calibrate", member.name, changed=changed, folder=calibration_folder(run.config, member))


def _engine(run: Run, member: Member) -> None:
    if member.engine != "tensorrt":
        return
    with _engine_progress(f"engine {member.name}") as report:
        changed = build_member_engine(run.config, member, report)
    folder = engine_folder(run.config, member)
    manifest = read_manifest(folder)
    facts = {**manifest.versions, "gpu_architecture": manifest.details["gpu_architecture"]}
    run.add("engine", member.name, changed=changed, folder=folder, **facts)


def _check(run: Run, member: Member, source: Source, *, again: bool) -> None:
    checked = check_member(run.config, member, source, again=again)
    parity = {key: value for key, value in checked.parity.items() if key != "basis"}
    run.add("check", member.name, changed=checked.changed, folder=checked.folder, file=checked.file, **parity)


def _repository(run: Run, programs: Path, unchecked: bool) -> None:
    assembled = repositories.assemble(run.config, programs, allow_unchecked=unchecked)
    run.add(
        "repository",
        run.config.name,
        changed=assembled.changed,
        folder=run.config.repository,
        version=assembled.version,
    )


@contextmanager
def _progress(label: str) -> Iterator[tuple[Callable[[int], None], Report]]:
    """A bar on stderr that shows bytes; gives the functions that set its length and move it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield (
            lambda total: progress.update(task, total=total),
            lambda written: progress.advance(task, written),
        )


@contextmanager
def _engine_progress(label: str) -> Iterator[EngineProgress]:
    """A bar on stderr that shows the phase TensorRT is in."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)
        yield lambda phase, steps, done: progress.update(
            task, description=f"{label}: {phase}", total=steps, completed=done
        )


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
