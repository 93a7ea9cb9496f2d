"""Makes a member's ONNX: opens its checkpoint, checks it in full, and fills the folder of the artefact.

What a step does in detail is in the modules it calls; `member` decides whether there is anything to make.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load_file

from preference_core.artefacts.artefact import Draft
from preference_core.battles.tokenisation import write_tokenisation
from preference_core.ensemble.member_tokenizer import settings_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.progress import BytesDone
from preference_export.artefacts.names import DOUBTS, KEPT_GEMMS, QUANTISED_GEMMS, RANGES_FILE, WEIGHT_BYTES
from preference_export.checkpoint.adapter import check_named_base, check_no_adapter, read_adapter
from preference_export.checkpoint.architecture import Architecture, architecture_of, check_scores, hugging_face_config
from preference_export.checkpoint.doubts import doubts_of
from preference_export.checkpoint.files import EMBEDDING
from preference_export.checkpoint.head_labels import check_head
from preference_export.checkpoint.job import Job, Started
from preference_export.checkpoint.merge import MergedWeights
from preference_export.checkpoint.rounding import open_base
from preference_export.checkpoint.tokenizer_check import check_ids, check_reading, tokenizer_of
from preference_export.graph.block_size import block_size
from preference_export.graph.casts import ParameterSpec, written_specs
from preference_export.graph.precision import Dtypes, dtypes_of
from preference_export.graph.quantise import Ranges, quantised_gemms
from preference_export.graph.write import (
    checkpoint_shapes,
    classifier_without_data,
    export_onnx,
    linear_modules,
    parameter_specs,
)


@dataclass(frozen=True)
class OpenedMember:
    """A member whose checkpoint was checked in full, without any tensor data read yet."""

    architecture: Architecture
    weights: MergedWeights
    specs: Mapping[str, ParameterSpec]
    labels: int
    dtypes: Dtypes
    #: names of the GEMMs that are quantised, and of those that are not because of their calibrated ranges
    quantised: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all weights in the ONNX file."""
        return sum(spec.bytes for spec in self.specs.values())

    @property
    def merged_bytes(self) -> int:
        """Bytes of all weights in a merged checkpoint, which is never quantised."""
        return sum(torch.Size(shape).numel() for shape in self.weights.shapes.values()) * self.dtypes.dtype.itemsize


def open_member(job: Job[Classifier], ranges: Ranges | None = None) -> OpenedMember:
    """Reads configuration and headers, and refuses whatever does not fit together.

    `ranges` of activations say which GEMMs are not quantised; without them, all are that the configuration names.
    """
    config, member, source = job.config, job.member, job.source
    check_no_adapter(source.base.folder)
    published = hugging_face_config(source.base.folder)
    architecture = architecture_of(published).for_length(member.max_tokens)
    if member.engine == "tensorrt":
        sequences, block = config.serving.max_batch_size, block_size(member.max_tokens)
        check_scores(architecture.heads, sequences, member.max_tokens, block)
    dtypes = dtypes_of(member)
    model = classifier_without_data(architecture, len(config.labels))
    modules = linear_modules(model)
    base = open_base(source.base.folder, published, member.base_rounding, modules)
    adapters = [read_adapter(adapter.folder, modules) for adapter in source.adapters]
    for adapter in adapters:
        check_named_base(adapter, member)
    rows = next((adapter.embedding_rows for adapter in adapters if adapter.embedding_rows), architecture.vocabulary)
    if rows != architecture.vocabulary:
        architecture = replace(architecture, vocabulary=rows)
        model = classifier_without_data(architecture, len(config.labels))
    check_head(member, published, [adapter.folder for adapter in source.adapters], config.labels)
    weights = MergedWeights(base, adapters, checkpoint_shapes(model))
    quantised = quantised_gemms(modules, dtypes, ranges)
    kept = tuple(name for name in quantised_gemms(modules, dtypes) if name not in quantised)
    specs = written_specs(parameter_specs(model), dtypes, quantised)
    return OpenedMember(architecture, weights, specs, len(config.labels), dtypes, tuple(quantised), kept)


def fill(draft: Draft, job: Job[Classifier], started: Started, report: BytesDone) -> None:
    """Writes a classifier's ONNX and tokenizer. `started` is told the number of bytes to come, `report` those written.

    Nothing is written before everything was checked.
    """
    ranges = load_file(job.calibration / RANGES_FILE) if dtypes_of(job.member).calibrated else None
    opened = open_member(job, ranges)
    tokenizer = tokenizer_of(job.source).folder
    settings = settings_of_checkpoint(tokenizer, job.member)
    tokenisation = replace(settings, embedding_rows=opened.architecture.vocabulary)
    check_reading(job.member, job.source, tokenisation)
    unknown = check_ids(job.source, tokenisation)
    started(opened.bytes)
    write_tokenisation(draft.folder, tokenizer, tokenisation)
    draft.known_hashes = export_onnx(
        draft.folder,
        opened.architecture,
        opened.weights,
        opened.labels,
        opened.dtypes,
        report,
        ranges,
        max_tokens=job.member.max_tokens,
    )
    modules = [
        name.removesuffix(".weight") for name in opened.weights.shapes if name.endswith(("_proj.weight", EMBEDDING))
    ]
    doubts = [doubt for adapter in opened.weights.adapters for doubt in doubts_of(adapter, modules)]
    draft.details |= {
        "architecture": opened.architecture.model_type,
        WEIGHT_BYTES: opened.bytes,
        DOUBTS: [*unknown, *doubts, *_doubts_of_ranges(job.member, opened)],
        KEPT_GEMMS: list(opened.kept),
        QUANTISED_GEMMS: len(opened.quantised),
    }


def _doubts_of_ranges(member: Classifier, opened: OpenedMember) -> list[str]:
    kept, others = len(opened.kept), len(opened.quantised)
    if kept <= others:
        return []
    return [
        f"`{member.name}`: {kept} of {kept + others} GEMMs stay in 16 bits, because their ranges are too uneven for "
        "INT8. `fp16` may be as fast, and is nearer to the original; or raise `quantisation.keep_above`"
    ]
