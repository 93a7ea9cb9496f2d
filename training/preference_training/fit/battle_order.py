"""In which order, and which way round, training battles are shown: a function of the seed and the epoch alone.

The Trainer's own samplers draw from the global random state, which a resumed run does not find as it was. Here a run
that was killed continues with exactly the battles and swaps that came next.
"""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

Example = dict[str, Any]

#: Seeds of different runs must not meet in later epochs.
_SEEDS_APART = 1_000_003


class TrainingBattles(Dataset[Example]):
    """Examples, some of which exchange their responses in each epoch: those with `swapped`, at `swap_probability`."""

    def __init__(self, examples: Sequence[Example], swap_probability: float, seed: int) -> None:
        self.examples = examples
        self.swap_probability = swap_probability
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        if "swapped" in example and Random(f"{self.seed}/{self.epoch}/{index}").random() < self.swap_probability:
            swapped: Example = example["swapped"]
            return swapped
        return example


class EpochSampler(Sampler[int]):
    """Indices of one epoch: shuffled, and with `group_size` so that this many neighbours are of similar length.

    The Trainer calls `set_epoch` before each epoch, also of a run that it resumes.
    """

    def __init__(self, battles: TrainingBattles, group_size: int | None) -> None:
        self.battles = battles
        self.group_size = group_size
        self._lengths = [len(example["input_ids"]) for example in battles.examples]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of a dataset's battles, and their swaps."""
        self.battles.epoch = epoch

    def __len__(self) -> int:
        return len(self.battles)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.battles.seed * _SEEDS_APART + self.battles.epoch)
        if self.group_size is None:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self.group_size, generator=generator))
