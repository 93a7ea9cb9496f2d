"""One sample battle as a member reads it: its text, and its first and last ids, for a person to look at.

Nothing but the owner knows whether this is the text of training.
"""

from dataclasses import dataclass

from preference_core.battles.encoders import encoder_from_folder
from preference_core.battles.tokenisation import BattleTokenizer
from preference_core.ensemble.settings import Member
from preference_export.checkpoint.job import Job
from preference_export.original.sample import checked_sample

#: Ids shown from each end, and characters of text.
SHOWN_IDS = 4
SHOWN_CHARACTERS = 240


@dataclass(frozen=True)
class Example:
    """`text` without special tokens; `first` and `last` ids, each with its text."""

    text: str
    tokens: int
    first: tuple[tuple[int, str], ...]
    last: tuple[tuple[int, str], ...]

    def lines(self) -> list[str]:
        """The example for people; line breaks are written as `\\n`."""
        half = SHOWN_CHARACTERS // 2
        text = self.text if len(self.text) <= SHOWN_CHARACTERS else f"{self.text[:half]} ... {self.text[-half:]}"
        first, last = (" ".join(f"{number} {text!r}" for number, text in ids) for ids in (self.first, self.last))
        return [f"text {text!r}", f"{self.tokens} ids {first} ... {last}"]


def example_of(job: Job[Member]) -> Example | None:
    """The shortest of the sample battles that have all their texts; None for a member that reads no text."""
    encoder = encoder_from_folder(job.exported)
    if not isinstance(encoder, BattleTokenizer):
        return None
    sample = checked_sample(job.config)
    texts = [encoder.template.field_texts(battle) for battle in sample.battles]
    lengths = [(not all(text.values()), sum(map(len, text.values()))) for text in texts]
    battle = sample.battles[lengths.index(min(lengths))]
    ids = encoder.encode(battle).ids.tolist()
    named = tuple((number, encoder.text_of(number)) for number in ids)
    return Example(encoder.template.render(battle), len(ids), named[:SHOWN_IDS], named[-SHOWN_IDS:])
