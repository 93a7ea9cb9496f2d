"""The optimisation profiles of a member's engine: which lengths it admits, and which it is tuned for."""

from collections.abc import Mapping
from dataclasses import dataclass

from preference_core import tensors

#: Sequences of full length whose tokens the latency profile admits: one in both orders, and a little company.
LATENCY_SEQUENCES = 4


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest length of each input; TensorRT picks its kernels for the usual one."""

    name: str
    lengths: Mapping[str, tuple[int, int, int]]


def profiles_of(max_tokens: int, max_batch_size: int) -> tuple[Profile, ...]:
    """A latency profile (tuned for one sequence of full length) and a throughput profile (for a full batch).

    Triton chooses by the tokens of a batch alone: of the profiles that admit as many, the one whose usual number is
    nearest. So the latency profile is bounded by tokens, and admits as many sequences as a batch may have: sixteen
    short ones go there as well. The last profile admits every batch. There is only one where batches are small.
    """
    few = min(LATENCY_SEQUENCES, max_batch_size)
    latency = _profile("latency", max_tokens, 1, max_batch_size, few * max_tokens)
    if few == max_batch_size:
        return (latency,)
    whole = max_batch_size * max_tokens
    return latency, _profile("throughput", max_tokens, max_batch_size, max_batch_size, whole)


def _profile(name: str, max_tokens: int, usual: int, most: int, most_tokens: int) -> Profile:
    longest = max(1, max_tokens // 2) if usual > 1 else max_tokens
    return Profile(
        name,
        {
            tensors.INPUT_IDS.name: (1, usual * longest, most_tokens),
            tensors.LENGTHS.name: (1, usual, most),
            tensors.MAX_SEQLEN.name: (1, longest, max_tokens),
        },
    )
