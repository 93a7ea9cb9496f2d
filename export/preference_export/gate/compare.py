"""Compares what will be served of a member with the original model, and scans it for values that are not finite.

It does not know whether that was done before, nor what becomes of the result.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preference_core.battles.battle import swapped_label_order
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import swap_consistency
from preference_core.ensemble.settings import Member
from preference_core.structure import plain
from preference_export.artefacts.model import Logits, Model, TokenIds
from preference_export.artefacts.names import MODEL_FILE, PLAN_FILE
from preference_export.checkpoint.job import Job
from preference_export.engine.runtimes import CPU_PROVIDER, provider_for
from preference_export.gate.onnx_classifier import OnnxClassifier
from preference_export.gate.parity import PACKED_SEQUENCES, answers, differences, exceeded, limits_of
from preference_export.gate.scan import Scan, scan, scanned
from preference_export.gate.tensorrt_classifier import classifiers_of_plan
from preference_export.graph.precision import dtypes_of
from preference_export.original.memory import fits
from preference_export.original.sample import Sample, checked_sample

#: Memory that ONNX Runtime may take on a CPU, in multiples of a file's weights: it widens and repacks them.
COPIES_OF_WEIGHTS = 3
#: One way to run an artefact, and how many sequences are packed into a call.
Way = tuple[Model, int]


def compare(job: Job[Member], file: str, *, again: bool) -> tuple[dict[str, Any], list[str]]:
    """What was measured of the artefact's `file`, and one sentence for everything that is above the limits or broken.

    Every sample battle is compared in both orders of its responses. What the original has answered before it is
    asked only if it is to be asked `again`, or if its answers of then would refuse the artefact.
    """
    labels, model = job.config.labels, job.exported / MODEL_FILE
    sample = checked_sample(job.config)
    job.check_reading(sample.battles)
    sequences, targets = _sequences(job.exported, sample, labels)
    original = job.original(again=again)
    expected = original.logits(sequences)
    torch.cuda.empty_cache()  # the engine may need what the original held; without a GPU it does nothing
    results = [answers(artefact, sequences, packed) for artefact, packed in ways_of(job, file)]
    parity, limits = differences(results, expected, targets), limits_of(job.member.precision, job.member.parity)
    if original.remembered and exceeded(parity, limits):  # A refusal is built on fresh answers.
        expected = job.original(again=True).logits(sequences)
        parity = differences(results, expected, targets)
    alone = [of_each for of_each, *_ in results]
    found = None
    if dtypes_of(job.member).runs_on_cpu:
        looked_at = scanned(sequences, np.stack(alone).sum(axis=0))
        found = scan(model, looked_at, provider=provider_for(job.member))
    measured = {
        **plain(parity),
        "swap": _swap(alone[-1], labels),
        "original_swap": _swap(expected, labels),
        **({} if found is None else {"scanned_sequences": len(looked_at), "activations": found.by_layer()}),
    }
    return measured, [*_overflow(found), *exceeded(parity, limits)]


def ways_of(job: Job[Member], file: str) -> Sequence[Way]:
    """The ways to run the artefact's `file`: an engine under each of its profiles, the last one with full batches."""
    if file == PLAN_FILE:
        classifiers = classifiers_of_plan(job.engine / PLAN_FILE, len(job.config.labels))
        packed = [PACKED_SEQUENCES] * (len(classifiers) - 1) + [job.config.serving.max_batch_size]
        return list(zip(classifiers, packed, strict=True))
    path, provider = job.exported / MODEL_FILE, provider_for(job.member)
    size_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    frugal = provider == CPU_PROVIDER and not fits(COPIES_OF_WEIGHTS * size_bytes, "cpu")
    return [(OnnxClassifier(path, 0, provider, frugal), PACKED_SEQUENCES)]


def _overflow(found: Scan | None) -> list[str]:
    if found is None or found.broken is None:
        return []
    node = found.broken
    return [
        f"`{node.module}` is the first to return values that are not finite "
        f"(node `{node.name}`, {node.dtype}; it was given magnitudes up to {found.reached:.4g})"
    ]


def _sequences(folder: Path, sample: Sample, labels: Sequence[str]) -> tuple[list[TokenIds], list[int] | None]:
    """Token ids and targets of the sample's battles, and then of the same battles with their responses exchanged."""
    encoder = encoder_from_folder(folder)
    partner = swapped_label_order(labels)
    targets = None
    if sample.targets is not None:
        targets = [*sample.targets, *(partner[target] for target in sample.targets)]
    return [tokens.ids for tokens in encoder.encode_batch(sample.in_both_orders())], targets


def _swap(both: Logits, labels: Sequence[str]) -> dict[str, float] | None:
    """How much predictions depend on the order of the responses; None where they are not finite.

    The second half of `both` are the logits of the battles of the first half, with their responses exchanged.
    """
    if not np.isfinite(both).all():
        return None
    logits, swapped = np.split(both, 2)
    back = softmax(swapped.astype(np.float64))[:, swapped_label_order(labels)]
    return swap_consistency(softmax(logits.astype(np.float64)), back)
