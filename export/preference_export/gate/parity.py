"""The one place that decides whether an artefact still is the model it was made from.

It compares logits; where they come from (`Reference`, `OnnxClassifier`, an engine) is up to the caller.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import log_loss
from preference_core.ensemble.settings import ParityLimits, Precision
from preference_core.errors import ParityError
from preference_export.artefacts.model import Logits, Model, TokenIds

#: Limits that hold where the configuration gives none. FP32 differs by rounding only; elsewhere a near tie may flip.
DEFAULT_LIMITS: dict[Precision, ParityLimits] = {
    "fp32": ParityLimits(
        max_logit_difference=1e-4, max_probability_difference=1e-5, max_decision_flips=0, max_log_loss_change=1e-5
    ),
    "fp16": ParityLimits(max_logit_difference=5e-2, max_probability_difference=1e-2, max_log_loss_change=5e-4),
    "bf16": ParityLimits(max_logit_difference=2e-1, max_probability_difference=4e-2, max_log_loss_change=2e-3),
    "int8": ParityLimits(max_logit_difference=5e-1, max_probability_difference=1e-1, max_log_loss_change=5e-3),
    "fp8": ParityLimits(max_logit_difference=1.0, max_probability_difference=2e-1, max_log_loss_change=1e-2),
}
#: In a parity record: sentences on what does not reproduce the original model.
BROKEN = "broken"
#: Sequences packed together, at most. Attention memory grows with the longest of them, squared, times this.
PACKED_SEQUENCES = 4


@dataclass(frozen=True)
class Parity:
    """Differences from the original model; each maximum is the worst of all the ways the artefact was asked.

    A decision flips when another label is the most probable one. `log_loss_change` is absolute; None without labels.
    """

    sequences: int
    max_logit_difference: float
    mean_logit_difference: float
    max_probability_difference: float
    decision_flips: int
    log_loss_change: float | None = None


def measure(artefact: Model, reference: Logits, sequences: Sequence[TokenIds]) -> Parity:
    """Compares all `answers` of `artefact` with the original's logits `[sequences, labels]`."""
    return differences([answers(artefact, sequences)], reference)


def answers(artefact: Model, sequences: Sequence[TokenIds], packed: int = PACKED_SEQUENCES) -> list[Logits]:
    """Logits `[sequences, labels]` of each sequence asked alone, and then of a few packed together in both orders."""
    alone = np.concatenate([artefact.logits([ids]) for ids in sequences])
    results = [alone]
    for reverse in (False, True):
        together = alone.copy()
        for pack in packs(sequences, packed):
            chosen = pack[::-1] if reverse else pack
            together[chosen] = artefact.logits([sequences[index] for index in chosen])
        results.append(together)
    return results


def differences(results: Sequence[Sequence[Logits]], reference: Logits, targets: Sequence[int] | None = None) -> Parity:
    """The worst of each difference, of all `answers` in each way to run an artefact, from the original's logits."""
    return worst([compare(each, reference, targets) for way in results for each in way])


def compare(logits: Logits, reference: Logits, targets: Sequence[int] | None = None) -> Parity:
    """Differences of `logits` from `reference`, both `[sequences, labels]`. What is not finite differs infinitely."""
    if logits.shape != reference.shape:
        raise ParityError(f"Logits have shape {list(logits.shape)}, the original's have {list(reference.shape)}")
    if not np.isfinite(logits).all():
        return Parity(len(logits), np.inf, np.inf, np.inf, len(logits), None if targets is None else np.inf)
    difference = np.abs(logits.astype(np.float64) - reference)
    ours, theirs = softmax(logits.astype(np.float64)), softmax(reference.astype(np.float64))
    return Parity(
        sequences=len(logits),
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        max_probability_difference=float(np.abs(ours - theirs).max()),
        decision_flips=int((ours.argmax(-1) != theirs.argmax(-1)).sum()),
        log_loss_change=None if targets is None else abs(log_loss(ours, targets) - log_loss(theirs, targets)),
    )


def limits_of(precision: Precision, limits: ParityLimits) -> ParityLimits:
    """The configured limits, and the precision's own where there are none."""
    given = {field.name: getattr(limits, field.name) for field in fields(limits)}
    return replace(DEFAULT_LIMITS[precision], **{name: value for name, value in given.items() if value is not None})


def exceeded(parity: Parity, limits: ParityLimits) -> list[str]:
    """One sentence for each limit that `parity` does not keep."""
    return over(
        {
            "max_logit_difference": parity.max_logit_difference,
            "max_probability_difference": parity.max_probability_difference,
            "max_decision_flips": parity.decision_flips,
            "max_log_loss_change": parity.log_loss_change,
        },
        limits,
    )


def over(measured: Mapping[str, float | None], limits: ParityLimits) -> list[str]:
    """One sentence for each value, by the name of its limit, that is above it."""
    sentences = []
    for name, value in measured.items():
        limit = getattr(limits, name)
        if limit is not None and value is not None and not value <= limit:
            sentences.append(f"{name} is {value:.3g}, the limit is {limit:.3g}")
    return sentences


def packs(sequences: Sequence[TokenIds], size: int) -> list[list[int]]:
    """Indices of at most `size` sequences each that mix short and long ones: a pack with the shortest one of all, and
    one with the longest. All sequences would take a CPU several times as long as one by one: attention pads.
    """
    ordered = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    count = -(-len(ordered) // size)
    return [ordered[start::count] for start in sorted({0, count - 1})]


def worst(parities: Sequence[Parity]) -> Parity:
    """The largest of each difference."""
    changes = [parity.log_loss_change for parity in parities if parity.log_loss_change is not None]
    return Parity(
        sequences=parities[0].sequences,
        max_logit_difference=max(parity.max_logit_difference for parity in parities),
        mean_logit_difference=max(parity.mean_logit_difference for parity in parities),
        max_probability_difference=max(parity.max_probability_difference for parity in parities),
        decision_flips=max(parity.decision_flips for parity in parities),
        log_loss_change=max(changes) if changes else None,
    )
