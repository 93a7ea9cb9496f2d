"""Where a score head may start: at the logistic regression on what the base, not yet trained, makes of the battles.

Linear probing before fine-tuning (Kumar et al., 2022): a head that already uses what the base knows leaves LoRA little
to distort.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from preference_training.fit.battle_order import Example
from preference_training.fit.encoding import collate
from preference_training.fit.model import pooled_states
from preference_training.fit.recipe import Recipe

_ITERATIONS = 500


def probe_batches(examples: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """What the base reads for the probe, in batches: all battles, in both orders where training swaps some."""
    read = [*examples, *(example["swapped"] for example in examples if "swapped" in example)]
    read.sort(key=lambda example: -len(example["input_ids"]))
    size = recipe.evaluation_batch_size
    return [read[first : first + size] for first in range(0, len(read), size)]


def probe_head(
    model: PeftModel, batches: Sequence[Sequence[Example]], recipe: Recipe, done: Callable[[int], None]
) -> None:
    """Gives `model`, whose LoRA changes nothing yet, the head of `recipe.probe_penalty`. `done` is told each batch."""
    assert recipe.probe_penalty is not None
    base: Any = model.get_base_model()
    head = base.score.weight
    states, labels = [], []
    model.eval()
    with torch.inference_mode():
        for number, examples in enumerate(batches, 1):
            batch = {name: values.to(head.device) for name, values in collate(examples).items()}
            states.append(pooled_states(model, batch["input_ids"], batch["attention_mask"], recipe.precision))
            labels.append(batch["labels"])
            done(number)
    weights = logistic_regression(torch.cat(states), torch.cat(labels), len(head), recipe.probe_penalty)
    with torch.no_grad():
        head.copy_(weights)


def logistic_regression(states: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights FP64 `[classes, features]`, without bias, that minimise the mean cross entropy of `labels` `[rows]` and
    `penalty / 2` times the sum of their squares, each feature of `states` `[rows, features]` having unit deviation.
    """
    states = states.double()
    deviation = states.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    states = states / deviation
    weights = torch.zeros(classes, states.shape[1], dtype=states.dtype, device=states.device, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = cross_entropy(states @ weights.T, labels) + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach() / deviation
