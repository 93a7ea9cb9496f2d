"""What an export would do (`--dry-run`): what it takes, and for each artefact whether it is up to date, or why not.

Nothing is fetched and no weights are written. Numbers come from the base's own files where these are on this machine,
else from the table of published bases.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preference_core import tensors
from preference_core.artefacts.artefact import Artefact
from preference_core.artefacts.manifest import FILE_NAME, Manifest
from preference_core.ensemble.settings import Member
from preference_core.errors import ArtefactError, SystemFailure
from preference_export.checkpoint.architecture import check_scores, scores_of
from preference_export.checkpoint.job import Job
from preference_export.checkpoint.source import source_of
from preference_export.engine import artefact as engines
from preference_export.engine.profiles import Profile, profiles_of
from preference_export.gate.check import CannotCheckError, why_check
from preference_export.graph import member as members
from preference_export.graph.block_size import block_size
from preference_export.graph.precision import dtypes_of
from preference_export.original import calibration as calibrations
from preference_export.repository.assemble import contents_of

#: Resident memory of an export before any weight is read: libraries, and the graph of a model of some forty layers.
IDLE_BYTES = 1024**3
#: What merging the largest layer holds per weight of it, as measured on full-size models (docs/performance.md):
#: float32 weight, change and sum, the rounded result, and what is hashed and written meanwhile.
BYTES_PER_MERGED_WEIGHT = 32
FLOAT_BYTES = 4
NOT_MADE = "it does not exist yet"
#: Stage, name, folder, and why it is to be made: empty where it is up to date.
Note = tuple[str, str, Path, str]
UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


@dataclass(frozen=True)
class MemberPlan:
    """What exporting one member takes. `shapes_from` says what the numbers rest on.

    `bytes_in` are those of the base, `bytes_out` those of the graph's weights, without the scales of quantised ones;
    `export_memory_bytes` is the expected peak of the export itself, and `check_memory_bytes` what the original model
    takes that the result is compared with. `scores_bytes` are those of one layer's attention scores for a full batch:
    what serving needs most beside the weights.
    """

    member: str
    base: str
    shapes_from: str
    architecture: str
    layers: int
    parameters: int
    precision: str
    engine: str
    bytes_in: int
    bytes_out: int
    export_memory_bytes: int
    check_memory_bytes: int
    missing: tuple[str, ...]
    scores_bytes: int
    profiles: tuple[Profile, ...]


def plan_of(job: Job[Member]) -> MemberPlan:
    """The plan for one member. Raises if nothing here says what its shapes are."""
    member, shapes, sequences = job.member, job.shapes(), job.config.serving.max_batch_size
    parameters = shapes.embedding + shapes.gemms + shapes.others
    attention = shapes.heads, sequences, member.max_tokens, block_size(member.max_tokens)
    if member.engine == "tensorrt":
        check_scores(*attention)
    return MemberPlan(
        member=member.name,
        base=member.base,
        shapes_from=shapes.known_from,
        architecture=shapes.architecture,
        layers=shapes.layers,
        parameters=parameters,
        precision=member.precision,
        engine=member.engine,
        bytes_in=shapes.bytes_in,
        bytes_out=dtypes_of(member).bytes_of(shapes.gemms, shapes.embedding) + FLOAT_BYTES * shapes.others,
        export_memory_bytes=IDLE_BYTES + BYTES_PER_MERGED_WEIGHT * shapes.largest,
        check_memory_bytes=IDLE_BYTES + FLOAT_BYTES * parameters,
        missing=tuple(_missing(member)),
        scores_bytes=FLOAT_BYTES * scores_of(*attention),
        profiles=profiles_of(member.max_tokens, sequences) if member.engine == "tensorrt" else (),
    )


def notes_of(jobs: Sequence[Job[Member]], unchecked: bool, assemble: bool) -> Iterator[Note]:
    """What a run would make, in order. What is made from something that is to be made is to be made, too."""
    config, changed, compared = jobs[0].config, [], []
    for job in jobs:
        made = ""
        for stage, folder, look in _stages(job):
            try:
                because = f"`{made}` is to be made" if made else look()
            except CannotCheckError:
                if not unchecked:
                    raise
                continue
            yield stage, job.member.name, folder, because
            if because and stage == "check":
                compared.append(job.member.name)
            elif because:
                made = stage
        changed += [job.member.name] if made else []
    if assemble:
        yield "repository", config.name, config.folders.repository, _repository(jobs, unchecked, changed, compared)


def _repository(jobs: Sequence[Job[Member]], unchecked: bool, changed: Sequence[str], compared: Sequence[str]) -> str:
    """Why it is to be made, given which members are to be made, and to be compared."""
    if changed:
        return f"`{changed[0]}` is to be made"
    try:
        return _state(contents_of(jobs[0].config, jobs, unchecked).artefact)
    except ArtefactError:
        if not compared:
            raise
        return f"`{compared[0]}` is to be compared"


def _stages(job: Job[Member]) -> Iterator[tuple[str, Path, Callable[[], str]]]:
    """Name, folder and what says why it is to be made, of each artefact of a member."""
    on_tensorrt = job.member.engine == "tensorrt"
    if dtypes_of(job.member).calibrated:
        yield "calibrate", job.calibration, lambda: _look(job, job.calibration, calibrations.artefact_of)
    yield "onnx", job.exported, lambda: _look(job, job.exported, members.artefact_of)
    if on_tensorrt:
        yield "engine", job.engine, lambda: _look(job, job.engine, engines.artefact_of)
    yield "check", job.engine if on_tensorrt else job.exported, lambda: why_check(job)


def _look(job: Job[Member], folder: Path, artefact_of: Callable[[Job[Member]], Artefact]) -> str:
    if not (folder / FILE_NAME).is_file():
        return NOT_MADE
    try:
        job.source = source_of(job.member, offline=True)
    except SystemFailure:
        return "its checkpoint is not on this machine yet"
    return _state(artefact_of(job), job.made)


def _state(artefact: Artefact, made: dict[str, Manifest] | None = None) -> str:
    state = artefact.state() if (artefact.folder / FILE_NAME).is_file() else NOT_MADE
    if made is not None and isinstance(state, Manifest):
        made[artefact.kind] = state
    return "" if isinstance(state, Manifest) else state


def _missing(member: Member) -> Iterator[str]:
    for location in (member.base_location, *member.adapter_locations):
        if location.revision is None and not Path(location.name).is_dir():
            yield f"{location.role} {location.name}"


def text_of_plan(plans: Sequence[MemberPlan]) -> str:
    """The plans for people."""
    return "\n".join(line for plan in plans for line in _lines(plan))


def _lines(plan: MemberPlan) -> list[str]:
    def line(name: str, text: str) -> str:
        return f"  {name:<12} {text}"

    lines = [
        f"{plan.member}: {plan.base} ({plan.architecture}, {plan.layers} layers) as {plan.precision} for {plan.engine}",
        line("shapes", f"from {plan.shapes_from}"),
        line("weights", f"{plan.parameters:,} parameters"),
        line("bytes", f"{_size(plan.bytes_in)} in, {_size(plan.bytes_out)} out"),
        line("memory", f"{_size(plan.export_memory_bytes)} to export, {_size(plan.check_memory_bytes)} to compare"),
    ]
    if plan.scores_bytes:
        lines.append(
            line("serving", f"{_size(plan.bytes_out)} of weights, {_size(plan.scores_bytes)} of scores in a layer")
        )
    lines += [line("profile", _profile_text(profile)) for profile in plan.profiles]
    return lines + [line("missing", missing) for missing in plan.missing]


def _profile_text(profile: Profile) -> str:
    _, _, tokens = profile.lengths[tensors.INPUT_IDS.name]
    _, usual, most = profile.lengths[tensors.LENGTHS.name]
    _, usual_tokens, _ = profile.lengths[tensors.MAX_SEQLEN.name]
    return (
        f"{profile.name}: up to {most} sequences, {tokens:,} tokens in all; "
        f"tuned for {usual} of {usual_tokens:,} tokens"
    )


def _size(count: int) -> str:
    unit, size = next(((unit, size) for unit, size in UNITS if count >= size), ("B", 1))
    return f"{count / size:.1f} {unit}"
