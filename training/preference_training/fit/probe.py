"""Where a score head may start: at the logistic regression on what the base, not yet trained, makes of the battles.

Linear probing before fine-tuning (Kumar et al., 2022): a head that already uses what the base knows leaves LoRA little
to distort.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import cross_entropy

from preference_core.artefacts.replacement import replaced_file
from preference_core.errors import Interrupted, SystemFailure
from preference_training.fit.battle_order import Example
from preference_training.fit.encoding import collate
from preference_training.fit.model import pooled_states
from preference_training.fit.recipe import Recipe

STATES_FILE = "probe.npy"
_ITERATIONS = 500


def probe_batches(examples: Sequence[Example], recipe: Recipe) -> list[list[Example]]:
    """What the base reads for the probe, in batches: all battles, in both orders where training swaps some."""
    read = [*examples, *(example["swapped"] for example in examples if "swapped" in example)]
    read.sort(key=lambda example: -len(example["input_ids"]))
    size = recipe.evaluation_batch_size
    return [read[first : first + size] for first in range(0, len(read), size)]


def probe_states(
    model: PeftModel,
    batches: Sequence[Sequence[Example]],
    recipe: Recipe,
    file: Path,
    seconds: float,
    done: Callable[[int], None],
) -> Tensor:
    """What `model`, its LoRA not trained yet, makes of all batches: states FP32 `[sequences, hidden]`, on the CPU.

    `done` is told each batch. What was read is kept in `file` every `seconds`, at the end, and when `done` raises
    `Interrupted`; a run that finds it there reads on. Raises `SystemFailure` where states are not finite.
    """
    device = next(model.parameters()).device
    read = [torch.from_numpy(np.load(file, allow_pickle=False))] if file.exists() else []
    known, saved_at = sum(map(len, read)), monotonic()
    model.eval()
    for number, examples in enumerate(batches, 1):
        known -= len(examples)
        if known >= 0:
            continue
        batch = {name: values.to(device) for name, values in collate(examples).items()}
        with torch.no_grad():
            read.append(pooled_states(model, batch["input_ids"], batch["attention_mask"], recipe.precision).cpu())
        try:
            done(number)
        except Interrupted:
            _save(read, file)
            raise
        if number == len(batches) or monotonic() - saved_at >= seconds:
            _save(read, file)
            saved_at = monotonic()
    states = torch.cat(read)
    overflown = int((~states.isfinite()).any(1).sum())
    if overflown:
        raise SystemFailure(
            f"What the base makes of {overflown} of {len(states)} texts is not finite in {recipe.precision}",
            hint='Train in another `precision`: "bf16" or "fp32".',
        )
    return states


def probe_head(model: PeftModel, states: Tensor, batches: Sequence[Sequence[Example]], recipe: Recipe) -> None:
    """Gives `model` the head of `recipe.probe_penalty`: the regression on the `states` of all batches."""
    assert recipe.probe_penalty is not None
    base: Any = model.get_base_model()
    head = base.score.weight
    labels = torch.tensor([example["labels"] for examples in batches for example in examples])
    with torch.no_grad():
        head.copy_(logistic_regression(states, labels, len(head), recipe.probe_penalty))


def _save(read: list[Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as part, part.open("wb") as opened:
        np.save(opened, torch.cat(read).numpy(), allow_pickle=False)


def logistic_regression(states: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights FP64 `[classes, features]`, without bias, that minimise the mean cross entropy of `labels` `[rows]` and
    `penalty / 2` times the sum of their squares, each feature of `states` `[rows, features]` having unit deviation.
    """
    states = states.to(torch.float64, copy=True)
    deviation = states.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    states /= deviation
    weights = torch.zeros(classes, states.shape[1], dtype=states.dtype, device=states.device, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = cross_entropy(states @ weights.T, labels) + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    search.step(loss)
    return weights.detach() / deviation
