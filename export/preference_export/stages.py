"""The stages of the command: each goes through the members of a run and notes what it did.

What a stage does to one member is in the modules it calls. These decide what there is to make before they import torch
or any other library that takes seconds.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from preference_core.ensemble.settings import Config, Member
from preference_core.errors import escape_control_characters
from preference_core.structure import plain
from preference_export import needs
from preference_export.artefacts.names import DOUBTS, KEPT_GEMMS, QUANTISED_GEMMS, WEIGHT_BYTES
from preference_export.checkpoint.allocation import freed_memory_kept
from preference_export.checkpoint.job import Job
from preference_export.engine.artefact import build_member_engine, built_engine
from preference_export.gate.check import CannotCheckError, check_member
from preference_export.graph.member import export_member, exported_member
from preference_export.graph.precision import check_supported
from preference_export.kinds import jobs_of
from preference_export.original.sample import sample_of
from preference_export.plan import notes_of, plan_of, text_of_plan
from preference_export.repository import assemble as repositories
from preference_export.run import Run, byte_progress, phase_progress

Stage = Callable[[Run, Job[Member]], None]
Look = Callable[[Config], object]


def each_member(run: Run, stage: Stage) -> None:
    """Runs one stage for all members, after checking what it needs of this machine."""
    looks: dict[Stage, Sequence[Look]] = {
        merge: [needs.checkpoints],
        calibrate: [needs.checkpoints, needs.sample, needs.calibration],
        onnx: [needs.checkpoints, needs.room],
        engine: [needs.tensorrt],
        check: [needs.checkpoints, needs.sample],
    }
    for job in _jobs(run, *looks[stage]):
        stage(run, job)


def merge(run: Run, job: Job[Member]) -> None:
    """Writes the merged checkpoint of a member that has weights."""
    name = job.member.name
    with freed_memory_kept(), byte_progress(f"merge {name}") as (started, report):
        written = job.merge(started, report)
    if written is not None:
        run.add("merge", name, changed=True, folder=run.config.folders.merged(name), weight_bytes=written)


def calibrate(run: Run, job: Job[Member]) -> None:
    """Measures the ranges of a member that needs them."""
    changed = job.calibrate()
    if changed is not None:
        run.add("calibrate", job.member.name, changed=changed, folder=job.calibration)


def onnx(run: Run, job: Job[Member]) -> None:
    """Exports a member to ONNX."""
    with freed_memory_kept(), byte_progress(f"onnx {job.member.name}") as (started, report):
        changed = export_member(job, started, report)
    details = exported_member(job).details
    facts = {WEIGHT_BYTES: details[WEIGHT_BYTES]}
    if details.get(KEPT_GEMMS):
        facts |= {KEPT_GEMMS: len(details[KEPT_GEMMS]), QUANTISED_GEMMS: details[QUANTISED_GEMMS]}
    run.add("onnx", job.member.name, changed=changed, folder=job.exported, **facts)
    for doubt in details.get(DOUBTS, ()):
        sys.stderr.write(f"warning: {escape_control_characters(doubt)}\n")


def engine(run: Run, job: Job[Member]) -> None:
    """Builds the engine of a member that TensorRT serves."""
    if job.member.engine != "tensorrt":
        return
    with phase_progress(f"engine {job.member.name}") as report:
        changed = build_member_engine(job, report)
    manifest = built_engine(job)
    facts = {
        "tensorrt": manifest.versions["tensorrt"],
        "gpu_architecture": manifest.details["gpu_architecture"],
        "warnings": len(manifest.details["warnings"]),
    }
    run.add("engine", job.member.name, changed=changed, folder=job.engine, **facts)
    for warning in manifest.details["warnings"] if changed else ():
        sys.stderr.write(f"note: TensorRT: {escape_control_characters(warning)}\n")


def check(run: Run, job: Job[Member], *, again: bool = True) -> None:
    """Compares a member with the original, `again` even where that was done before."""
    changed, subject = check_member(job, again=again)
    facts = {key: value for key, value in subject.manifest.parity.items() if key != "basis"}
    if changed:
        from preference_export.gate.example import example_of

        example = example_of(job)
        if example is not None:
            run.say("example", job.member.name, example.lines())
            facts["example"] = plain(example)
    run.add("check", job.member.name, changed=changed, folder=subject.folder, file=subject.file, **facts)


def compare_with_predictions(run: Run, predictions: Path, battles: Path | None, name: str | None) -> bool:
    """Compares what is exported with the owner's own predictions; False above the limits."""
    from preference_export.gate.against import compare_with_owner

    member = None if name is None else run.config.member(name)
    with phase_progress("against") as report:
        found = compare_with_owner(_jobs(run), member, predictions, battles or sample_of(run.config), report)
    line = (
        f"{found.battles:,} battles ({found.shortened:,} shortened; {found.left_out:,} without a prediction): "
        f"max probability difference {found.max_probability_difference:.2g} (id {found.worst_id}), "
        f"mean {found.mean_probability_difference:.2g}, decision flips {found.decision_flips:,}"
    )
    if found.log_loss_change is not None:
        line += f", log loss change {found.log_loss_change:.2g}"
    verdict = f"differs: {'; '.join(found.broken)}" if found.broken else "agrees with your predictions"
    run.results.append({"stage": "against", "name": name or run.config.name, **plain(found)})
    run.say("against", name or run.config.name, [line, verdict])
    return not found.broken


def assemble_repository(run: Run, unchecked: bool) -> None:
    """Assembles the repository; every member must have been made from what the configuration names now."""
    _repository(run, _jobs(run), unchecked, check_inputs=True)


def all_stages(run: Run, unchecked: bool, *, assemble: bool = True) -> None:
    """Everything, as needed, one member after the other; without `assemble` up to their checks."""
    jobs = _jobs(run, *_all_needs(unchecked))
    for job in jobs:
        calibrate(run, job)
        onnx(run, job)
        engine(run, job)
        try:
            check(run, job, again=False)
        except CannotCheckError as error:
            if not unchecked:
                raise
            sys.stderr.write(f"note: {error.message}\n")
    if assemble:
        _repository(run, jobs, unchecked)


def describe(run: Run) -> None:
    """Prints what exporting each member takes, whether it is up to date or not."""
    plans = [plan_of(job) for job in jobs_of(run.config)]
    run.more["plan"] = [plain(plan) for plan in plans]
    if not run.as_json:
        typer.echo(text_of_plan(plans))


def dry_run(run: Run, unchecked: bool, *, assemble: bool = True) -> None:
    """Notes what `all_stages` would do and why, and raises what it would raise before it does anything."""
    for stage, name, folder, because in notes_of(_jobs(run, *_all_needs(unchecked)), unchecked, assemble):
        run.add(stage, name, changed=bool(because), folder=folder, **({"because": because} if because else {}))


def roll_back(run: Run) -> None:
    """Exchanges the repository with the one before it."""
    version = repositories.roll_back(run.config)
    run.add("rollback", run.config.name, changed=True, folder=run.config.folders.repository, version=version)


def write_sources(run: Run, output: Path) -> None:
    """Writes the repository's configurations and programs."""
    written = repositories.write_sources(run.config, output)
    run.add("sources", run.config.name, changed=True, folder=output, files=len(written))


def _all_needs(unchecked: bool) -> tuple[Look, ...]:
    engines = needs.tensorrt if unchecked else needs.compared_engines
    return needs.checkpoints, needs.sample, needs.calibration, engines, needs.room


def _jobs(run: Run, *needed: Look) -> list[Job[Member]]:
    """A job for each member. Raises if one cannot be served as configured, or this machine lacks what it needs."""
    for look in (check_supported, *needed):
        look(run.config)
    return jobs_of(run.config)


def _repository(run: Run, jobs: list[Job[Member]], unchecked: bool, *, check_inputs: bool = False) -> None:
    assembled = repositories.assemble(run.config, jobs, allow_unchecked=unchecked, check_inputs=check_inputs)
    run.add(
        "repository",
        run.config.name,
        changed=assembled.changed,
        folder=run.config.folders.repository,
        version=assembled.version,
    )
