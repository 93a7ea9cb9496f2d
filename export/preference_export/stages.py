"""The stages of the command: each goes through the members of a run and notes what it did.

What a stage does to one member is in the modules it calls.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from preference_core.artefacts.manifest import read_manifest
from preference_core.artefacts.replacement import replaced_folder
from preference_core.ensemble.settings import Classifier, Config, Member
from preference_core.errors import escape_control_characters
from preference_core.structure import plain
from preference_export import needs
from preference_export.checkpoint.allocation import freed_memory_kept
from preference_export.checkpoint.source import Source, source_of
from preference_export.checkpoint.write import write_checkpoint
from preference_export.engine.artefact import build_member_engine
from preference_export.gate.against import compare_with_owner
from preference_export.gate.check import CannotCheckError, check_member
from preference_export.gate.example import example_of
from preference_export.graph import member as members
from preference_export.graph.precision import check_supported, recipe_of
from preference_export.original.calibration import calibrate_member, sample_of
from preference_export.original.member import original_of
from preference_export.original.sample import read_sample
from preference_export.plan import MemberPlan, plan_of
from preference_export.repository import assemble as repositories
from preference_export.run import Run, byte_progress, phase_progress


def merge_members(run: Run) -> None:
    """Writes the merged checkpoint of each member that has weights."""
    _look(run, needs.checkpoints)
    for member in run.config.members:
        if not isinstance(member, Classifier):
            continue
        source = source_of(member)
        opened = members.open_member(run.config, member, source)
        target = run.config.folders.merged(member.name)
        with (
            freed_memory_kept(),
            byte_progress(f"merge {member.name}") as (started, report),
            replaced_folder(target) as folder,
        ):
            started(opened.merged_bytes)
            write_checkpoint(folder, source.base.folder, opened.weights, run.config.labels, opened.recipe.dtype, report)
        run.add("merge", member.name, changed=True, folder=target, weight_bytes=opened.merged_bytes)


def calibrate_members(run: Run) -> None:
    """Measures ranges for each member that needs them."""
    _look(run, needs.checkpoints, needs.calibration)
    for member in run.config.members:
        _calibrate(run, member, source_of(member))


def export_members(run: Run) -> None:
    """Exports each member to ONNX."""
    _look(run, needs.checkpoints, needs.room)
    for member in run.config.members:
        _onnx(run, member, source_of(member))


def build_engines(run: Run) -> None:
    """Builds the engine of each member that TensorRT serves."""
    _look(run, needs.tensorrt)
    for member in run.config.members:
        _engine(run, member)


def check_members(run: Run) -> None:
    """Compares each member with the original, whether that was done before or not."""
    _look(run, needs.checkpoints, sample_of)
    for member in run.config.members:
        _check(run, member, source_of(member), again=True)


def compare_with_predictions(run: Run, predictions: Path, battles: Path | None, name: str | None) -> bool:
    """Compares what is exported with the owner's own predictions; False above the limits."""
    member = None if name is None else run.config.member(name)
    with phase_progress("against") as report:
        found = compare_with_owner(run.config, member, predictions, battles or sample_of(run.config), report)
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
    _look(run)
    _repository(run, unchecked, check_inputs=True)


def all_stages(run: Run, unchecked: bool) -> None:
    """Everything, as needed, one member after the other."""
    engines = needs.tensorrt if unchecked else needs.compared_engines
    _look(run, needs.checkpoints, sample_of, needs.calibration, engines, needs.room)
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
            sys.stderr.write(f"note: {error.message}\n")
    _repository(run, unchecked)


def plans(run: Run) -> list[MemberPlan]:
    """What `all_stages` would take."""
    _look(run)
    return [plan_of(run.config, member) for member in run.config.members]


def roll_back(run: Run) -> None:
    """Exchanges the repository with the one before it."""
    version = repositories.roll_back(run.config)
    run.add("rollback", run.config.name, changed=True, folder=run.config.folders.repository, version=version)


def write_sources(run: Run, output: Path) -> None:
    """Writes the repository's configurations and programs."""
    written = repositories.write_sources(run.config, output)
    run.add("sources", run.config.name, changed=True, folder=output, files=len(written))


def _look(run: Run, *needed: Callable[[Config], object]) -> None:
    """Whether all members can be served as configured, and this machine has what is needed for them."""
    for look in (check_supported, *needed):
        look(run.config)


def _onnx(run: Run, member: Member, source: Source) -> None:
    with freed_memory_kept(), byte_progress(f"onnx {member.name}") as (started, report):
        changed = members.export_member(run.config, member, source, started, report)
    folder = run.config.folders.exported(member.name)
    details = read_manifest(folder).details
    run.add("onnx", member.name, changed=changed, folder=folder, weight_bytes=details[members.WEIGHT_BYTES])
    for doubt in details.get(members.DOUBTS, ()):
        sys.stderr.write(f"warning: {escape_control_characters(doubt)}\n")


def _calibrate(run: Run, member: Member, source: Source) -> None:
    if isinstance(member, Classifier) and recipe_of(member).calibrated:
        changed = calibrate_member(run.config, member, source, lambda: original_of(run.config, member, source))
        run.add("calibrate", member.name, changed=changed, folder=run.config.folders.calibration(member.name))


def _engine(run: Run, member: Member) -> None:
    if member.engine != "tensorrt":
        return
    with phase_progress(f"engine {member.name}") as report:
        changed = build_member_engine(run.config, member, report)
    folder = run.config.folders.engine(member.name)
    manifest = read_manifest(folder)
    facts = {
        "tensorrt": manifest.versions["tensorrt"],
        "gpu_architecture": manifest.details["gpu_architecture"],
        "warnings": len(manifest.details["warnings"]),
    }
    run.add("engine", member.name, changed=changed, folder=folder, **facts)
    for warning in manifest.details["warnings"] if changed else ():
        sys.stderr.write(f"note: TensorRT: {escape_control_characters(warning)}\n")


def _check(run: Run, member: Member, source: Source, *, again: bool) -> None:
    sample = read_sample(sample_of(run.config), run.config.labels)
    example = example_of(run.config.folders.exported(member.name), sample)
    if example is not None:
        run.say("example", member.name, example.lines())
    checked = check_member(run.config, member, source, again=again)
    facts = {key: value for key, value in checked.parity.items() if key != "basis"}
    if example is not None:
        facts["example"] = plain(example)
    run.add("check", member.name, changed=checked.changed, folder=checked.folder, file=checked.file, **facts)


def _repository(run: Run, unchecked: bool, *, check_inputs: bool = False) -> None:
    assembled = repositories.assemble(run.config, allow_unchecked=unchecked, check_inputs=check_inputs)
    run.add(
        "repository",
        run.config.name,
        changed=assembled.changed,
        folder=run.config.folders.repository,
        version=assembled.version,
    )
