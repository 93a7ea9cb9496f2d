"""The gate of a member: compares what will be served with the original model, and records the result.

A TensorRT engine is compared where there is a GPU; elsewhere its graph is, which does not stand in for the engine. An
artefact whose manifest has a parity record has kept its limits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from preference_core.battle import swapped_label_order
from preference_core.combination import softmax
from preference_core.encoders import encoder_from_folder
from preference_core.errors import ParityError, UserError
from preference_core.manifest import Manifest, sha256_of, write_manifest
from preference_core.metrics import swap_consistency
from preference_core.settings import Config, Member
from preference_core.structure import plain
from preference_export.calibration import sample_of
from preference_export.engine import NO_GPU, PLAN_FILE, gpu_architecture, tensorrt_module
from preference_export.engines import built_engine, engine_folder
from preference_export.member import exported_member, folder_of, reference_of
from preference_export.onnx_export import MODEL_FILE
from preference_export.parity import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    Classifier,
    Logits,
    OnnxClassifier,
    TokenIds,
    exceeded,
    limits_of,
    measure,
)
from preference_export.precision import recipe_of
from preference_export.sample import Sample, read_sample
from preference_export.scan import Scan, scan
from preference_export.source import Source
from preference_export.tensorrt_classifier import TensorRtClassifier


class CannotCheckError(UserError):
    """This machine cannot run the artefact."""


@dataclass(frozen=True)
class Subject:
    """An artefact that this machine can run: the folder whose manifest takes the record, and how it is run."""

    folder: Path
    manifest: Manifest
    file: str
    runtime: str
    open: Callable[[], Classifier]


@dataclass(frozen=True)
class Checked:
    """Whether the comparison was made now, of which file, and what it found."""

    changed: bool
    folder: Path
    file: str
    parity: Mapping[str, Any]


def subject_of(config: Config, member: Member) -> Subject:
    """What can be compared here: the engine on a GPU, else the graph. `CannotCheckError` when neither."""
    folder, labels = folder_of(config, member), len(config.labels)
    if member.engine == "tensorrt" and gpu_architecture() != NO_GPU:
        runtime = f"tensorrt {tensorrt_module().__version__} {gpu_architecture()}"
        plan = engine_folder(config, member)
        manifest = built_engine(config, member)
        return Subject(plan, manifest, PLAN_FILE, runtime, lambda: TensorRtClassifier(plan / PLAN_FILE, labels))
    on_gpu = member.engine == "onnxruntime" and member.gpus and CUDA_PROVIDER in onnxruntime.get_available_providers()
    provider = CUDA_PROVIDER if on_gpu else CPU_PROVIDER
    if provider == CPU_PROVIDER and recipe_of(member).dtype == torch.bfloat16:
        raise CannotCheckError(
            f"Member `{member.name}` cannot be compared with the original model on this machine: "
            "ONNX Runtime does not run bf16 on a CPU",
            hint="Run `preference-export check` where the engine runs, or leave it unchecked with `--unchecked`.",
        )
    runtime = f"onnxruntime {onnxruntime.__version__} {provider}"
    manifest = exported_member(config, member)
    return Subject(folder, manifest, MODEL_FILE, runtime, lambda: OnnxClassifier(folder / MODEL_FILE, 0, provider))


def check_member(config: Config, member: Member, source: Source, *, again: bool = False) -> Checked:
    """Compares a member with the original and records it; does nothing if that was done before, unless `again`.

    Above the limits: `ParityError`, and no record is left.
    """
    sample_path = sample_of(config)
    subject = subject_of(config, member)
    limits = limits_of(member.precision, member.parity)
    sample = read_sample(sample_path, config.labels)
    basis = {
        "limits": plain(limits),
        "sample": {"sha256": sha256_of(sample_path), "battles": len(sample.battles)},
        "file": subject.file,
        "runtime": subject.runtime,
    }
    if not again and subject.manifest.parity.get("basis") == basis:
        return Checked(False, subject.folder, subject.file, subject.manifest.parity)
    forward, swapped = _sequences(folder_of(config, member), sample)
    reference = reference_of(config, member, source)
    expected, expected_swapped = reference.logits(forward), reference.logits(swapped)
    del reference
    artefact = subject.open()
    parity = measure(artefact, expected, forward, sample.targets)
    actual = [np.concatenate([artefact.logits([ids]) for ids in battles]) for battles in (forward, swapped)]
    found = scan(subject.folder / MODEL_FILE, forward) if subject.file == MODEL_FILE and _scannable(member) else None
    broken = [*_overflow(found), *exceeded(parity, limits)]
    record = {
        "basis": basis,
        **plain(parity),
        "swap": _swap(actual[0], actual[1], config.labels),
        "original_swap": _swap(expected, expected_swapped, config.labels),
        **({} if found is None else {"activations": found.by_layer()}),
    }
    _record(subject, {} if broken else record)
    if broken:
        raise ParityError(
            f"Member `{member.name}` does not reproduce the original model: {'; '.join(broken)}",
            hint="Nothing was put into the repository. Use a wider `precision`, or set `parity` limits you accept.",
        )
    return Checked(True, subject.folder, subject.file, record)


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


def _sequences(folder: Path, sample: Sample) -> tuple[list[TokenIds], list[TokenIds]]:
    """Token ids of the sample's battles, and of the same battles with their responses exchanged."""
    encoder = encoder_from_folder(folder)
    orders = (sample.battles, tuple(battle.swapped() for battle in sample.battles))
    forward, swapped = ([tokens.ids for tokens in encoder.encode_batch(battles)] for battles in orders)
    return forward, swapped


def _swap(logits: Logits, swapped: Logits, labels: Sequence[str]) -> dict[str, float] | None:
    """How much predictions depend on the order of the responses; None where they are not finite."""
    if not (np.isfinite(logits).all() and np.isfinite(swapped).all()):
        return None
    back = softmax(swapped.astype(np.float64))[:, swapped_label_order(labels)]
    return swap_consistency(softmax(logits.astype(np.float64)), back)


def _record(subject: Subject, parity: Mapping[str, Any]) -> None:
    manifest = subject.manifest
    write_manifest(
        subject.folder,
        manifest.kind,
        made_from=manifest.made_from,
        versions=manifest.versions,
        parity=parity,
        details=manifest.details,
        known_hashes={name: record.sha256 for name, record in manifest.files.items()},
    )
