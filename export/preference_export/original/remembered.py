"""What the original model of a member answered, in `build/NAME/originals/MEMBER`.

It is the same for every precision and for other limits, and takes nearly half of a comparison.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from safetensors.numpy import load_file, save

from preference_core.artefacts.artefact import Artefact, Draft
from preference_core.ensemble.settings import Classifier
from preference_core.errors import SystemFailure
from preference_export.artefacts.model import Logits, Model, TokenIds
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.job import Job
from preference_export.original.memory import name_of_device

KIND = "original"
LOGITS_FILE = "logits.safetensors"


class RememberedOriginal:
    """The original model, opened only for other sequences than the last ones, or if it is to answer `again`."""

    def __init__(self, job: Job[Classifier], opened: Callable[[], Model], *, again: bool) -> None:
        self._job, self._opened, self._again = job, opened, again
        self.remembered = False

    def logits(self, sequences: Sequence[TokenIds]) -> Logits:
        """Logits `[sequences, labels]`. `SystemFailure` where they are not finite."""
        artefact = answers(self._job, sequences)
        self.remembered = not self._again and artefact.current() is not None
        if self.remembered:
            known: Logits = load_file(artefact.folder / LOGITS_FILE)["logits"]
            return known
        logits = self._opened().logits(sequences)
        if not np.isfinite(logits).all():
            raise SystemFailure(
                f"The original model of `{self._job.member.name}` answers with logits that are not finite",
                hint="Look at its weights and those of its adapter: nothing can be compared with it.",
            )

        def fill(draft: Draft) -> None:
            (draft.folder / LOGITS_FILE).write_bytes(save({"logits": logits}))

        self._job.make(artefact, fill, again=True)
        return logits


def answers(job: Job[Classifier], sequences: Sequence[TokenIds]) -> Artefact:
    """The answers to `sequences` as they would be computed now."""
    ids = hashlib.sha256()
    for sequence in sequences:
        ids.update(np.array(len(sequence), "<i8").tobytes())
        ids.update(sequence.astype("<i4").tobytes())
    made_from = {
        "inputs": job.inputs,
        "base_rounding": job.member.base_rounding,
        "labels": len(job.config.labels),
        "sequences": ids.hexdigest(),
        "device": name_of_device(),
    }
    return Artefact(job.config.folders.original(job.member.name), KIND, made_from, versions())
