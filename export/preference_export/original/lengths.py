"""The length baseline as the original of its engine: the fitted buckets themselves."""

from collections.abc import Sequence

from preference_core.battles.lengths import LengthBuckets
from preference_export.artefacts.model import Logits, TokenIds


class LengthReference:
    """What the engine is compared with: the buckets themselves."""

    def __init__(self, buckets: LengthBuckets) -> None:
        self.table = buckets.log_probabilities()
        self.remembered = False

    def logits(self, sequences: Sequence[TokenIds]) -> Logits:
        """Logits `[sequences, labels]` of token ids, one of each sequence."""
        rows: Logits = self.table[[int(ids[0]) for ids in sequences]]
        return rows
