"""The configuration of an ensemble, as frozen dataclasses that check themselves. `loading` reads them from a file.

Holds every key that more than one part reads. What only training reads stays a plain table here (`training`), which
`preference_training` turns into its own dataclasses with the same strictness.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from preference_core.battles.template import Template, template_of
from preference_core.battles.truncation import Truncation
from preference_core.ensemble.combination import Combination, Combine
from preference_core.ensemble.folders import Folders
from preference_core.ensemble.locations import Location
from preference_core.errors import CombinationError, ConfigError, UserError, nearest
from preference_core.structure import at_least
from preference_core.tensors import RESERVED_MODEL_NAMES

LABELS_THREE_WAY = ("winner_model_a", "winner_model_b", "winner_tie")

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Runtime = Literal["tensorrt", "onnxruntime"]
Rounding = Literal["none", "nf4", "int8"]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class ParityLimits:
    """How far an artefact may be from the original model on the sample battles; else the precision's limits hold."""

    max_logit_difference: float | None = None  #: largest difference of one logit
    max_probability_difference: float | None = None  #: largest difference of one probability
    max_decision_flips: int | None = None  #: battles whose most probable label changes
    max_log_loss_change: float | None = None  #: change of the log loss; needs labels in `data.sample`


@dataclass(frozen=True)
class Quantisation:
    """How a member of precision `int8` or `fp8` is quantised."""

    #: `static`: scales from calibration; `dynamic`: at run time, INT8 on ONNX Runtime's CPU only and the default there
    method: Literal["static", "dynamic"] | None = None
    #: of all other GEMMs, and of the scales; else fp16 for `static`, fp32 for `dynamic`
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    keep: tuple[str, ...] = ()  #: GEMMs that stay in that precision, as patterns: `layers.0.*`, `*.o_proj`
    #: 0 to 1: how much of the activations' range SmoothQuant moves into the weights; static INT8 only, else 0.5
    alpha: float | None = None
    #: a GEMM is not quantised if, after smoothing, its widest input feature's calibrated range is more than this many
    #: times the median one's; static INT8 only, else 4
    keep_above: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ConfigError(f"`alpha` is {self.alpha}, expected 0 to 1")
        if self.keep_above is not None:
            at_least("keep_above", self.keep_above, 1)
        if self.method == "dynamic" and self.precision not in (None, "fp32"):
            raise ConfigError(f"`precision` is `{self.precision}`; with the method `dynamic` it is always `fp32`")


@dataclass(frozen=True)
class Build:
    """How TensorRT builds an engine."""

    workspace_mebibytes: int = 4096  #: scratch memory while building
    optimisation_level: int = 3  #: 0 to 5: how long it looks for fast kernels

    def __post_init__(self) -> None:
        at_least("workspace_mebibytes", self.workspace_mebibytes, 1)
        if not 0 <= self.optimisation_level <= 5:
            raise ConfigError(f"`optimisation_level` is {self.optimisation_level}, expected 0 to 5")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What every member has: where it is from, how Triton runs it, and how close to the original it must be."""

    name: str  #: lower-case letters, digits and underscores; the name of its model in Triton
    base: str  #: folder, or hub id (`organisation/name`); of a length baseline the folder of fitted buckets
    revision: str | None = None  #: commit of a hub id, which has to be pinned
    instances: int = 1  #: copies that Triton runs at the same time, per GPU
    threads: int = 1  #: of each instance, on a CPU
    #: how far it may be from the original; each key defaults to the precision's own limit
    parity: ParityLimits = field(default_factory=ParityLimits)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in RESERVED_MODEL_NAMES:
            raise ConfigError(
                f"`name` is `{self.name}`",
                hint="A member's name is lower-case letters, digits and underscores, and none of: "
                + ", ".join(sorted(RESERVED_MODEL_NAMES)),
            )
        at_least("instances", self.instances, 1)
        at_least("threads", self.threads, 1)

    @property
    def base_location(self) -> Location:
        """Where the base is."""
        return Location(self.name, "base", self.base, self.revision)


@dataclass(frozen=True, kw_only=True)
class Classifier(Served):
    """A member that reads text: where its weights are, how it reads a battle, and how it is served."""

    kind: Literal["classifier"] = "classifier"  #: what the member is
    template: str | Template  #: a preset, or `{ text, add_bos, add_eos }`: how a battle becomes text
    #: training put what the template does round a text, although the base's tokenizer does otherwise
    special_tokens: Literal["template"] | None = None
    max_tokens: int  #: longest sequence that the member reads, special tokens included; at least 16
    #: LoRA adapter, folder or hub id; several (of folds, say) are merged into their mean; without one the base has its
    #: own head
    adapter: str | tuple[str, ...] | None = None
    #: commit of the adapter on the hub, or one for each adapter ("" for a folder)
    adapter_revision: str | tuple[str, ...] | None = None
    adapter_base: str | None = None  #: the base that the adapter names, where `base` is a copy of the same weights
    #: merge into the base as bitsandbytes rounds it in training, and not as it is stored
    base_rounding: Rounding = "none"
    #: names that the head's checkpoint uses for `labels`, in the same order; else it must use `labels` themselves or
    #: none
    head_labels: tuple[str, ...] = ()
    truncation: Truncation = field(default_factory=Truncation)  #: what is cut of a battle that is too long
    precision: Precision = "fp32"  #: of the GEMMs; all between them is FP32
    engine: Runtime = "onnxruntime"  #: the runtime that serves it
    #: numbers of the GPUs it runs on, from 0; without any it runs on the CPU (`onnxruntime`)
    gpus: tuple[int, ...] = ()
    quantisation: Quantisation | None = None  #: for `int8` and `fp8` only
    build: Build = field(default_factory=Build)  #: how TensorRT builds the engine
    training: Mapping[str, Any] = field(default_factory=dict)  #: how it is fine-tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        template_of(self.template)
        at_least("max_tokens", self.max_tokens, 16)
        for number in self.gpus:
            at_least("gpus", number, 0)
        if len(set(self.gpus)) < len(self.gpus):
            raise ConfigError(
                f"`gpus` is {list(self.gpus)}, which names one twice",
                hint="For several copies on one GPU set `instances`, which counts per GPU.",
            )
        if self.adapter == ():
            raise ConfigError("`adapter` is an empty list", hint="Leave it out where the base brings its own head.")
        if isinstance(self.adapter_revision, tuple) and len(self.adapter_revision) != len(self.adapters):
            raise ConfigError(
                f"`adapter_revision` has {len(self.adapter_revision)} entries, `adapter` has {len(self.adapters)}",
                hint='One for each adapter, "" for a folder; or one text for all.',
            )
        self._check_quantisation()

    @property
    def adapters(self) -> tuple[str, ...]:
        """All adapters: none, one or several."""
        if self.adapter is None:
            return ()
        return (self.adapter,) if isinstance(self.adapter, str) else self.adapter

    @property
    def adapter_locations(self) -> tuple[Location, ...]:
        """Where each adapter is."""
        given = self.adapter_revision
        revisions = given if isinstance(given, tuple) else (given,) * len(self.adapters)
        pairs = zip(self.adapters, revisions, strict=True)
        return tuple(Location(self.name, "adapter", adapter, revision or None) for adapter, revision in pairs)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU serves it; TensorRT has no other place."""
        return self.engine == "tensorrt" or bool(self.gpus)

    @property
    def quantisation_method(self) -> Literal["static", "dynamic"] | None:
        """How the scales of its activations are found; None where they need none."""
        if self.precision not in ("int8", "fp8"):
            return None
        chosen = self.quantisation.method if self.quantisation else None
        return chosen or ("dynamic" if self.precision == "int8" and not self.on_gpu else "static")

    def _check_quantisation(self) -> None:
        if self.quantisation is None:
            return
        if self.precision not in ("int8", "fp8"):
            raise ConfigError(f"`quantisation` has no meaning for the precision `{self.precision}`")
        if self.quantisation.method == "dynamic" and (self.precision != "int8" or self.on_gpu):
            raise ConfigError(
                "`quantisation.method` is `dynamic`",
                hint="It is for the precision `int8` of ONNX Runtime on a CPU; use `static`.",
            )
        if self.precision != "int8" or self.quantisation_method != "static":
            for key in ("alpha", "keep_above"):
                if getattr(self.quantisation, key) is not None:
                    raise ConfigError(
                        f"`quantisation.{key}` has no meaning here: it is for static INT8",
                        hint="Leave it out; or set `precision` to `int8` and `quantisation.method` to `static`.",
                    )


@dataclass(frozen=True, kw_only=True)
class LengthBaseline(Served):
    """The length baseline as a member: `base` is the folder of its fitted buckets. It has no text, weights or GPU."""

    kind: Literal["length_buckets"] = "length_buckets"  #: what the member is
    #: The number of the bucket is the one token of a battle.
    max_tokens: ClassVar[int] = 1
    adapter_locations: ClassVar[tuple[Location, ...]] = ()
    precision: ClassVar[Precision] = "fp32"
    quantisation: ClassVar[None] = None
    quantisation_method: ClassVar[None] = None
    head_labels: ClassVar[tuple[str, ...]] = ()
    build: ClassVar[Build] = Build()
    engine: ClassVar[Literal["onnxruntime"]] = "onnxruntime"
    gpus: ClassVar[tuple[int, ...]] = ()
    on_gpu: ClassVar[bool] = False


Member = Classifier | LengthBaseline


@dataclass(frozen=True)
class Serving:
    """How Triton schedules requests, of one battle each. Only members on a GPU run several at a time."""

    max_batch_size: int = 16  #: battles in one execution of a member
    max_queue_delay_microseconds: int = 2000  #: how long a battle waits for others to share its execution (GPU only)
    max_queue_size: int = 4096  #: battles that wait for `tokenize`; more are refused (with a member on a GPU only)
    #: how long a battle waits for a member; then it is refused (GPU only)
    queue_timeout_microseconds: int = 60_000_000
    tokenize_instances: int = 1  #: processes that tokenise
    served_versions: int = 1  #: versions of the repository that are loaded at a time
    max_text_bytes: int = 16 * 2**20  #: UTF-8, all texts of a battle together (embedded server only)
    max_turns: int = 1000  #: of each field (embedded server only)
    #: no more battles are let in than are answered within this time (embedded server only)
    latency_goal_milliseconds: int = 2000

    def __post_init__(self) -> None:
        counts = ("max_batch_size", "max_queue_size", "queue_timeout_microseconds", "tokenize_instances")
        for key in (*counts, "max_text_bytes", "max_turns", "latency_goal_milliseconds"):
            at_least(key, getattr(self, key), 1)
        at_least("max_queue_delay_microseconds", self.max_queue_delay_microseconds, 0)
        at_least("served_versions", self.served_versions, 1)


@dataclass(frozen=True)
class Data:
    """Files of labelled battles: CSV, TSV, JSON Lines (or one of them gzipped) or Parquet."""

    train: str | None = None  #: battles that are trained on
    validation: str | None = None  #: battles that weights and early stopping are measured on
    test: str | None = None  #: battles that `evaluate` measures on
    sample: str | None = None  #: battles that parity is measured on and ranges are calibrated on


@dataclass(frozen=True)
class Config:
    """Everything about one ensemble."""

    name: str  #: what everything it makes is called: `build/NAME`
    members: tuple[Member, ...] = field(metadata={"key": "member"})  #: one table for each model of the ensemble
    #: in the order of the heads' logits; those that end in `a` and `b` trade places with the responses
    labels: tuple[str, ...] = LABELS_THREE_WAY
    combine: Combine = field(default_factory=Combine)  #: how the members become one prediction
    serving: Serving = field(default_factory=Serving)  #: how Triton schedules
    data: Data = field(default_factory=Data)  #: files of battles
    training: Mapping[str, Any] = field(default_factory=dict)  #: where training gets its battles and bases

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise ConfigError(f"`name` is `{self.name}`, expected letters, digits, `.`, `_` and `-`")
        for label in self.labels:
            if not label or "," in label or label != label.strip():
                raise ConfigError(
                    f"`labels` has {label!r}",
                    hint="A label is not empty, and has no space around it and no comma: it separates them in Triton.",
                )
        names = [member.name for member in self.members]
        if not names:
            raise ConfigError("There is no `[[member]]`")
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ConfigError(f"Two members are called `{min(repeated)}`")
        for table in ("weights", "temperatures"):
            for name in getattr(self.combine, table):
                if name not in names:
                    raise ConfigError(f"`combine.{table}` names an unknown member `{name}`", hint=nearest(name, names))
        try:
            _ = self.combination
        except CombinationError as error:
            raise ConfigError(f"`combine`: {error.message}", error.hint) from error

    def member(self, name: str) -> Member:
        """The member called `name`; `UserError` naming the nearest where there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise UserError(f"There is no member `{name}`", hint=nearest(name, [member.name for member in self.members]))

    def alone(self, name: str) -> "Config":
        """The same ensemble with one member, for what is done to each of them."""
        return replace(self, members=(self.member(name),), combine=Combine())

    @property
    def combination(self) -> Combination:
        """The rule by which the members are combined."""
        return self.combine.rule(self.labels, tuple(member.name for member in self.members))

    @property
    def folders(self) -> Folders:
        """Where everything generated for this ensemble goes."""
        return Folders(self.name)
