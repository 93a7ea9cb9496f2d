"""The gate of a member: compares what will be served with the original model, and records the result.

A TensorRT engine is compared where there is a GPU; elsewhere its graph is, which does not stand in for the engine. A
manifest's parity record says what was measured, or what was found broken; without one, nothing was compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from preference_core.artefacts.manifest import Manifest, amend_manifest, sha256_of
from preference_core.battles.battle import swapped_label_order
from preference_core.battles.encoders import encoder_from_folder
from preference_core.battles.template import template_of
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import swap_consistency
from preference_core.ensemble.settings import Classifier, Config, Member
from preference_core.errors import ConfigError, ParityError, UserError
from preference_core.structure import plain
from preference_export.artefacts.names import MODEL_FILE, PLAN_FILE
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.source import Source
from preference_export.checkpoint.tokenizer_check import auto_tokenizer, check_same_ids, tokenizer_of
from preference_export.engine.artefact import built_engine
from preference_export.engine.build import NO_GPU, gpu_architecture, tensorrt_module, use_gpu_of
from preference_export.gate.onnx_classifier import CPU_PROVIDER, CUDA_PROVIDER, OnnxClassifier
from preference_export.gate.parity import BROKEN, PACKED_SEQUENCES, exceeded, limits_of, logits_alone, measure, worst
from preference_export.gate.scan import Scan, scan, scanned
from preference_export.gate.tensorrt_classifier import classifiers_of_plan
from preference_export.graph.member import exported_member
from preference_export.graph.precision import recipe_of
from preference_export.original.calibration import sample_of
from preference_export.original.member import reference_of
from preference_export.original.memory import fits
from preference_export.original.model import Logits, Model, TokenIds
from preference_export.original.sample import Sample, read_sample


class CannotCheckError(UserError):
    """This machine cannot run the artefact."""


#: Memory that ONNX Runtime may take on a CPU, in multiples of a file's weights: it widens and repacks them.
COPIES_OF_WEIGHTS = 3
#: One way to run an artefact, and how many sequences are packed into a call.
Way = tuple[Model, int]


@dataclass(frozen=True)
class Subject:
    """An artefact that this machine can run: the folder whose manifest takes the record, and the ways it is run.

    An engine is run under each of its profiles, the last one with full batches.
    """

    folder: Path
    manifest: Manifest
    file: str
    runtime: str
    open: Callable[[], Sequence[Way]]


@dataclass(frozen=True)
class Checked:
    """Whether the comparison was made now, of which file, and what it found."""

    changed: bool
    folder: Path
    file: str
    parity: Mapping[str, Any]


def subject_of(config: Config, member: Member) -> Subject:
    """What can be compared here: the engine on a GPU, else the graph. `CannotCheckError` when neither."""
    folder = config.folders.exported(member.name)
    use_gpu_of(member)
    if member.engine == "tensorrt" and gpu_architecture() != NO_GPU:
        runtime = f"tensorrt {tensorrt_module().__version__} {gpu_architecture()}"
        plan = config.folders.engine(member.name)
        manifest = built_engine(config, member)
        return Subject(plan, manifest, PLAN_FILE, runtime, lambda: _ways_of_plan(config, plan / PLAN_FILE))
    provider = _provider_for(member)
    if provider == CPU_PROVIDER and recipe_of(member).dtype == torch.bfloat16:
        raise CannotCheckError(
            f"Member `{member.name}` cannot be compared with the original model on this machine: "
            "ONNX Runtime does not run bf16 on a CPU",
            hint="Run `preference-export check` where the engine runs, or leave it unchecked with `--unchecked`.",
        )
    runtime = f"onnxruntime {onnxruntime.__version__} {provider}"
    manifest = exported_member(config, member)
    return Subject(folder, manifest, MODEL_FILE, runtime, lambda: _ways_of_graph(folder / MODEL_FILE, provider))


def check_member(config: Config, member: Member, source: Source, *, again: bool = False) -> Checked:
    """Compares a member with the original and records it; does nothing if that was done before, unless `again`.

    Every sample battle is compared in both orders of its responses. Above the limits: `ParityError`, and the record
    says what is broken.
    """
    sample_path = sample_of(config)
    subject = subject_of(config, member)
    limits = limits_of(member.precision, member.parity)
    sample = read_sample(sample_path, config.labels)
    if sample.targets is None and member.parity.max_log_loss_change is not None:
        raise ConfigError(
            f"`parity.max_log_loss_change` of `{member.name}` needs labels, and `{sample_path}` has none",
            hint="Remove the limit, or name labelled battles in `data.sample`.",
        )
    basis = {
        "limits": plain(limits),
        "sample": {"sha256": sha256_of(sample_path), "battles": len(sample.battles)},
        "file": subject.file,
        "runtime": subject.runtime,
        "versions": versions(),
    }
    known = subject.manifest.parity
    if not again and known.get("basis") == basis and BROKEN not in known:
        return Checked(False, subject.folder, subject.file, known)
    _check_reading(member, source, sample)
    sequences, targets = _sequences(config.folders.exported(member.name), sample, config.labels)
    reference = reference_of(config, member, source)
    expected = reference.logits(sequences)
    del reference
    torch.cuda.empty_cache()  # the engine may need what the original held; without a GPU it does nothing
    ways = subject.open()
    alone = [logits_alone(artefact, sequences) for artefact, _ in ways]
    parity = worst(
        [
            measure(artefact, expected, sequences, targets, packed, logits)
            for (artefact, packed), logits in zip(ways, alone, strict=True)
        ]
    )
    del ways  # as above
    found = None
    if _scannable(member):
        looked_at = scanned(sequences, np.stack(alone).sum(axis=0))
        found = scan(config.folders.exported(member.name) / MODEL_FILE, looked_at, provider=_provider_for(member))
    broken = [*_overflow(found), *exceeded(parity, limits)]
    record = {
        "basis": basis,
        **plain(parity),
        "swap": _swap(alone[-1], config.labels),
        "original_swap": _swap(expected, config.labels),
        **({} if found is None else {"scanned_sequences": len(looked_at), "activations": found.by_layer()}),
    }
    amend_manifest(subject.folder, subject.manifest, parity={"basis": basis, BROKEN: broken} if broken else record)
    if broken:
        raise ParityError(
            f"Member `{member.name}` does not reproduce the original model: {'; '.join(broken)}",
            hint="Nothing was put into the repository. Use a wider `precision`, or set `parity` limits you accept.",
        )
    return Checked(True, subject.folder, subject.file, record)


def _check_reading(member: Member, source: Source, sample: Sample) -> None:
    """Refuses a tokenizer that reads the sample's texts otherwise than Transformers."""
    if isinstance(member, Classifier):
        checkpoint, template = tokenizer_of(source), template_of(member.template)
        check_same_ids(checkpoint, auto_tokenizer(checkpoint), map(template.render, sample.battles))


def _provider_for(member: Member) -> str:
    """What runs a member's graph here: ONNX Runtime's CUDA provider where it is installed and the member has a GPU."""
    on_gpu = gpu_architecture() != NO_GPU if member.engine == "tensorrt" else bool(member.gpus)
    return CUDA_PROVIDER if on_gpu and CUDA_PROVIDER in onnxruntime.get_available_providers() else CPU_PROVIDER


def _scannable(member: Member) -> bool:
    return recipe_of(member).dtype != torch.bfloat16


def _overflow(found: Scan | None) -> list[str]:
    if found is None or found.broken is None:
        return []
    node = found.broken
    return [
        f"`{node.module}` is the first to return values that are not finite "
        f"(node `{node.name}`, {node.dtype}; it was given magnitudes up to {found.reached:.4g})"
    ]


def _ways_of_plan(config: Config, path: Path) -> list[Way]:
    classifiers = classifiers_of_plan(path, len(config.labels))
    packed = [PACKED_SEQUENCES] * (len(classifiers) - 1) + [config.serving.max_batch_size]
    return list(zip(classifiers, packed, strict=True))


def _ways_of_graph(path: Path, provider: str) -> list[Way]:
    size_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    frugal = provider == CPU_PROVIDER and not fits(COPIES_OF_WEIGHTS * size_bytes, "cpu")
    return [(OnnxClassifier(path, 0, provider, frugal), PACKED_SEQUENCES)]


def _sequences(folder: Path, sample: Sample, labels: Sequence[str]) -> tuple[list[TokenIds], list[int] | None]:
    """Token ids and targets of the sample's battles, and then of the same battles with their responses exchanged."""
    encoder = encoder_from_folder(folder)
    battles = [*sample.battles, *(battle.swapped() for battle in sample.battles)]
    partner = swapped_label_order(labels)
    targets = None
    if sample.targets is not None:
        targets = [*sample.targets, *(partner[target] for target in sample.targets)]
    return [tokens.ids for tokens in encoder.encode_batch(battles)], targets


def _swap(both: Logits, labels: Sequence[str]) -> dict[str, float] | None:
    """How much predictions depend on the order of the responses; None where they are not finite.

    The second half of `both` are the logits of the battles of the first half, with their responses exchanged.
    """
    if not np.isfinite(both).all():
        return None
    logits, swapped = np.split(both, 2)
    back = softmax(swapped.astype(np.float64))[:, swapped_label_order(labels)]
    return swap_consistency(softmax(logits.astype(np.float64)), back)
