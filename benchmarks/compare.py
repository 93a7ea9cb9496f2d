"""Contestants side by side: answers are compared first, then rounds timed in turn, beside the machine's own rate."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from contestants import Answer, Contestant
from machine import gemm_rate, load

#: Battles that are answered before anything is timed.
FIRST = 8
#: How far probabilities may be from the reference's: peers compute in FP32, too.
MAX_DIFFERENCE = 1e-3


@dataclass
class Result:
    """One contestant: seconds of each round, and the largest difference of a probability from the reference's."""

    name: str
    versions: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    max_probability_difference: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison; `rates` are FP32 operations per second of ONNX Runtime's GEMM before each round."""

    title: str
    battles: int
    tokens: int
    operations: float
    results: list[Result]
    rates: list[float]
    loads: list[float]

    def result(self, name: str) -> Result:
        """That of one contestant."""
        return next(result for result in self.results if result.name == name)

    def share(self, result: Result) -> float:
        """Of ONNX Runtime's own rate, in the median of the rounds."""
        shares = (self.operations / took / rate for took, rate in zip(result.seconds, self.rates, strict=True))
        return statistics.median(shares)


def compare(
    title: str,
    contestants: Sequence[tuple[Contestant, float]],
    lengths: Sequence[int],
    operations: float,
    rounds: int,
    say: Callable[[str], Any],
) -> Comparison:
    """Times all contestants, which run already; each has the largest difference that its answers may have.

    The first is the reference. Raises `SystemExit` where answers differ by more, before or while anything is timed.
    """
    results = [Result(contestant.name, dict(contestant.versions)) for contestant, _ in contestants]
    found = Comparison(title, len(lengths), sum(lengths), operations, results, [], [])
    for count in (min(FIRST, len(lengths)), *[None] * rounds):
        timed = count is None
        if timed:
            found.rates.append(gemm_rate())
            found.loads.append(load())
            say(f"{title}: round {len(found.rates)} of {rounds}, load {found.loads[-1]:.1f}")
        reference: Answer | None = None
        for (contestant, limit), result in zip(contestants, results, strict=True):
            answer = contestant.run(count)
            reference = reference or answer
            difference = float(np.abs(answer.probabilities - reference.probabilities).max())
            result.max_probability_difference = max(result.max_probability_difference, difference)
            if not difference <= limit:
                raise SystemExit(f"{contestant.name} differs by {difference:.2g} from {results[0].name}, limit {limit}")
            if timed:
                result.seconds.append(answer.seconds)
            say(f"  {contestant.name}: {answer.seconds:.2f} s, difference {difference:.1e}")
    return found
