"""What an export would do, computed without downloading, reading or writing any weights.

Shapes come from the base's own `config.json` where that is on this machine, else from the table of published bases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preference_core import tensors
from preference_core.battles.lengths import LENGTHS_FILE, read_buckets
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline, Member
from preference_core.errors import CheckpointError
from preference_export.checkpoint.architecture import architecture_of, hugging_face_config
from preference_export.checkpoint.files import ADAPTER_WEIGHTS
from preference_export.checkpoint.published import BASES
from preference_export.engine.profiles import Profile, profiles_of
from preference_export.graph.blocks import block_size
from preference_export.graph.casts import written_specs
from preference_export.graph.packed import Gemm
from preference_export.graph.precision import check_supported, dtypes_of
from preference_export.graph.quantise import quantised_gemms
from preference_export.graph.write import classifier_without_data, linear_modules, parameter_specs

#: Resident memory of an export before any weight is read: libraries, and the graph of a model of some forty layers.
IDLE_BYTES = 1024**3
#: What merging the largest layer holds per weight of it, as measured on full-size models (docs/performance.md):
#: float32 weight, change and sum, the rounded result, and what is hashed and written meanwhile.
BYTES_PER_MERGED_WEIGHT = 32
STORED_BYTES = 2
SCORE_BYTES = 4
UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


@dataclass(frozen=True)
class MemberPlan:
    """What exporting one member takes. `shapes_from` says what the numbers rest on.

    `bytes_in` are those of the base; `export_memory_bytes` is the expected peak of the export itself, and
    `check_memory_bytes` what the original model takes that the result is compared with. `scores_bytes` are those of one
    layer's attention scores for a full batch: what serving needs most beside the weights.
    """

    member: str
    base: str
    shapes_from: str
    architecture: str
    layers: int
    tensors: int
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


def plans_of(config: Config) -> list[MemberPlan]:
    """What exporting all members would take."""
    check_supported(config)
    return [plan_of(config, member) for member in config.members]


def plan_of(config: Config, member: Member) -> MemberPlan:
    """The plan for one member. Raises where its shapes are known from nowhere, or cannot be exported exactly."""
    if isinstance(member, LengthBaseline):
        return _length_plan(config, member)
    published, shapes_from, bytes_in = _base(member)
    architecture = architecture_of(published).for_length(member.max_tokens)
    sequences = config.serving.max_batch_size
    if member.engine == "tensorrt":
        architecture.check_scores(sequences, member.max_tokens, block_size(member.max_tokens))
    model = classifier_without_data(architecture, len(config.labels))
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    largest = max(module.weight.numel() for module in model.modules() if isinstance(module, Gemm))
    total = sum(parameters.values())
    dtypes = dtypes_of(member)
    written = written_specs(parameter_specs(model), dtypes, quantised_gemms(linear_modules(model), dtypes))
    return MemberPlan(
        member=member.name,
        base=member.base,
        shapes_from=shapes_from,
        architecture=architecture.model_type,
        layers=architecture.layers,
        tensors=len(parameters),
        parameters=total,
        precision=member.precision,
        engine=member.engine,
        bytes_in=bytes_in,
        bytes_out=sum(spec.bytes for spec in written.values()),
        export_memory_bytes=IDLE_BYTES + BYTES_PER_MERGED_WEIGHT * largest,
        check_memory_bytes=IDLE_BYTES + 4 * total,
        missing=tuple(
            f"adapter {location.name}"
            for location in member.adapter_locations
            if location.revision is None and location.folder_with(ADAPTER_WEIGHTS) is None
        ),
        scores_bytes=SCORE_BYTES * architecture.scores(sequences, member.max_tokens, block_size(member.max_tokens)),
        profiles=profiles_of(member.max_tokens, sequences) if member.engine == "tensorrt" else (),
    )


def _length_plan(config: Config, member: LengthBaseline) -> MemberPlan:
    """The plan for length buckets, which may not be fitted yet."""
    fitted = (Path(member.base) / LENGTHS_FILE).is_file()
    buckets = len(read_buckets(Path(member.base), config.labels).probabilities) if fitted else 0
    bytes_out = 4 * buckets * len(config.labels)
    return MemberPlan(
        member=member.name,
        base=member.base,
        shapes_from="its buckets" if fitted else "nothing: the buckets are not fitted yet",
        architecture=member.kind,
        layers=0,
        tensors=1,
        parameters=buckets * len(config.labels),
        precision=member.precision,
        engine=member.engine,
        bytes_in=bytes_out,
        bytes_out=bytes_out,
        export_memory_bytes=IDLE_BYTES,
        check_memory_bytes=IDLE_BYTES,
        missing=() if fitted else (f"buckets {member.base}",),
        scores_bytes=0,
        profiles=(),
    )


def text_of_plan(plans: Sequence[MemberPlan]) -> str:
    """The plans for people."""
    return "\n".join(line for plan in plans for line in _lines(plan))


def _base(member: Classifier) -> tuple[Any, str, int]:
    """The base's `transformers` configuration, where it is from, and the bytes of its weights."""
    on_hub, folder = member.base_location.is_on_hub(), member.base_location.folder_with("config.json")
    if folder is not None or not on_hub:
        folder = folder or Path(member.base)
        return hugging_face_config(folder), "its config.json", _stored_bytes(folder)
    known = BASES.get(member.base)
    if known is None:
        raise CheckpointError(
            f"`base` of `{member.name}` is `{member.base}`, which is not on this machine and not among the known bases",
            hint=f"Fetch its config.json: `hf download {member.base} config.json --revision {member.revision}`.",
        )
    origin = "the published shapes, stored in 16 bits; it is not on this machine"
    return known.config(), origin, STORED_BYTES * known.parameters


def _stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _lines(plan: MemberPlan) -> list[str]:
    def line(name: str, text: str) -> str:
        return f"  {name:<12} {text}"

    lines = [
        f"{plan.member}: {plan.base} ({plan.architecture}, {plan.layers} layers) as {plan.precision} for {plan.engine}",
        line("shapes", f"from {plan.shapes_from}"),
        line("weights", f"{plan.tensors} tensors, {plan.parameters:,} parameters"),
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
    _, usual, most = (bounds - 1 for bounds in profile.lengths[tensors.CU_SEQLENS.name])
    _, usual_tokens, _ = profile.lengths[tensors.MAX_SEQLEN.name]
    return (
        f"{profile.name}: up to {most} sequences, {tokens:,} tokens in all; "
        f"tuned for {usual} of {usual_tokens:,} tokens"
    )


def _size(count: int) -> str:
    unit, size = next(((unit, size) for unit, size in UNITS if count >= size), ("B", 1))
    return f"{count / size:.1f} {unit}"
