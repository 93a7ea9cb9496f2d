"""One member on its way from checkpoint to ONNX, in `build/NAME/members/MEMBER`.

Each step first asks whether its result is there already, made from the same things. What a step does in detail is in
the modules it calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from preference_core.artefacts.artefact import Artefact
from preference_core.artefacts.manifest import Manifest, amend_manifest, verify
from preference_core.battles.lengths import read_buckets, write_buckets
from preference_core.battles.tokenisation import write_tokenisation
from preference_core.ensemble.member_tokenizer import settings_of_checkpoint
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline, Member
from preference_core.errors import ArtefactError
from preference_core.progress import BytesDone
from preference_core.structure import plain
from preference_export.artefacts.names import MODEL_FILE
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.adapter import check_named_base, check_no_adapter, read_adapter
from preference_export.checkpoint.architecture import Architecture, architecture_of, hugging_face_config
from preference_export.checkpoint.doubts import doubts_of
from preference_export.checkpoint.head_labels import check_head
from preference_export.checkpoint.merge import MergedWeights
from preference_export.checkpoint.rounding import open_base
from preference_export.checkpoint.source import Source, input_hashes, origins_of
from preference_export.checkpoint.tokenizer_check import check_ids, check_reading, tokenizer_of
from preference_export.graph.blocks import block_size
from preference_export.graph.casts import ParameterSpec, written_specs
from preference_export.graph.external_data import check_external_data
from preference_export.graph.length_buckets import write_onnx
from preference_export.graph.precision import Recipe, recipe_of
from preference_export.graph.quantise import quantised_gemms
from preference_export.graph.ranges import ranges_of
from preference_export.graph.write import (
    checkpoint_shapes,
    classifier_without_data,
    export_onnx,
    linear_modules,
    parameter_specs,
)

KIND = "member"
#: Keys of a manifest's details.
WEIGHT_BYTES = "weight_bytes"
DOUBTS = "doubts"


@dataclass(frozen=True)
class OpenedMember:
    """A member whose checkpoint was checked in full, without any tensor data read yet."""

    architecture: Architecture
    weights: MergedWeights
    specs: Mapping[str, ParameterSpec]
    labels: int
    recipe: Recipe

    @property
    def bytes(self) -> int:
        """Bytes of all weights in the ONNX file."""
        return sum(spec.bytes for spec in self.specs.values())

    @property
    def merged_bytes(self) -> int:
        """Bytes of all weights in a merged checkpoint, which is never quantised."""
        return sum(torch.Size(shape).numel() for shape in self.weights.shapes.values()) * self.recipe.dtype.itemsize


def open_member(config: Config, member: Classifier, source: Source) -> OpenedMember:
    """Reads configuration and headers, and refuses whatever does not fit together."""
    check_no_adapter(source.base.folder)
    published = hugging_face_config(source.base.folder)
    architecture = architecture_of(published)
    architecture.check_length(member.max_tokens)
    if member.engine == "tensorrt":
        architecture.check_scores(config.serving.max_batch_size, member.max_tokens, block_size(member.max_tokens))
    recipe = recipe_of(member)
    model = classifier_without_data(architecture, len(config.labels))
    modules = linear_modules(model)
    base = open_base(source.base.folder, published, member.base_rounding, modules)
    adapters = [read_adapter(adapter.folder, modules) for adapter in source.adapters]
    for adapter in adapters:
        check_named_base(adapter, member)
    check_ids(source.base.folder, architecture.vocabulary)
    check_head(member, published, [adapter.folder for adapter in source.adapters], config.labels)
    weights = MergedWeights(base, adapters, checkpoint_shapes(model))
    specs = written_specs(parameter_specs(model), recipe, quantised_gemms(modules, recipe))
    return OpenedMember(architecture, weights, specs, len(config.labels), recipe)


def settings_of(config: Config, member: Member) -> dict[str, Any]:
    """The part of the configuration that decides the content of an exported member."""
    if isinstance(member, LengthBaseline):
        return {"labels": list(config.labels), "kind": member.kind}
    keys = ("template", "special_tokens", "max_tokens", "truncation", "base_rounding")
    values = {key: plain(getattr(member, key)) for key in keys}
    return {"labels": list(config.labels), "recipe": recipe_of(member).described, **values}


def export_member(
    config: Config, member: Member, source: Source, started: Callable[[int], None], report: BytesDone
) -> bool:
    """Writes the member's ONNX, tokenizer and manifest; False when they were there, made from the same inputs.

    `started` is told the number of bytes to come, `report` those written.
    """
    inputs = input_hashes(source)
    ranges, origin = None, None
    if isinstance(member, Classifier) and recipe_of(member).calibrated:
        ranges, origin = ranges_of(config, member, inputs)
    made_from = {"settings": settings_of(config, member), "inputs": inputs, "calibration": origin}
    artefact = Artefact(config.folders.exported(member.name), KIND, made_from, versions())
    current = artefact.current(WEIGHT_BYTES)
    if current is not None:
        _note_origins(config.folders.exported(member.name), current, source)
        return False
    if isinstance(member, LengthBaseline):
        _write_length_buckets(artefact, config, source)
        return True
    opened = open_member(config, member, source)
    started(opened.bytes)
    tokenizer = tokenizer_of(source).folder
    tokenisation = settings_of_checkpoint(tokenizer, member)
    check_reading(member, source, tokenisation)
    with artefact.draft() as draft:
        write_tokenisation(draft.folder, tokenizer, tokenisation)
        draft.known_hashes = export_onnx(
            draft.folder,
            opened.architecture,
            opened.weights,
            opened.labels,
            opened.recipe,
            report,
            ranges,
            max_tokens=member.max_tokens,
        )
        draft.details |= {"architecture": opened.architecture.model_type, WEIGHT_BYTES: opened.bytes}
        draft.details |= origins_of(source)
        modules = [name.removesuffix(".weight") for name in opened.weights.shapes if name.endswith("_proj.weight")]
        doubts = [doubt for adapter in opened.weights.adapters for doubt in doubts_of(adapter, modules)]
        draft.details[DOUBTS] = doubts
    return True


def _write_length_buckets(artefact: Artefact, config: Config, source: Source) -> None:
    buckets = read_buckets(source.base.folder, config.labels)
    with artefact.draft() as draft:
        write_buckets(draft.folder, buckets)
        draft.known_hashes = write_onnx(draft.folder, buckets)
        weight_bytes = buckets.log_probabilities().nbytes
        draft.details |= {"architecture": "length_buckets", WEIGHT_BYTES: weight_bytes, **origins_of(source)}


def exported_member(config: Config, member: Member) -> Manifest:
    """The manifest of an exported member that is unchanged and of these settings."""
    folder = config.folders.exported(member.name)
    manifest = verify(folder)
    if manifest.made_from.get("settings") != settings_of(config, member):
        raise ArtefactError(
            f"`{folder}` was exported with other settings than the configuration has now",
            hint="Run `preference-export all` with this configuration.",
        )
    check_external_data(folder / MODEL_FILE)
    return manifest


def _note_origins(folder: Path, manifest: Manifest, source: Source) -> None:
    """Another revision may hold the same files: then only what the manifest says of it changes."""
    origins = origins_of(source)
    kept = {key: value for key, value in manifest.details.items() if key not in manifest.made_from["inputs"]}
    if {**kept, **origins} != manifest.details:
        amend_manifest(folder, manifest, details={**kept, **origins})
