"""The head that starts as a logistic regression on the states of the base."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModel

from preference_core.battles.battle import swapped_label_order
from preference_core.errors import ConfigError, Interrupted
from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.rows import read_labelled
from preference_training.fit.adapter import adapter_stage
from preference_training.fit.checkpoints import last_checkpoint
from preference_training.fit.encoding import tokenizer_of
from preference_training.fit.model import base_folder
from preference_training.fit.probe import logistic_regression
from preference_training.fit.recipe import Recipe
from preference_training.fit.trainer import fit


def objective(weights, states, labels, penalty):
    """Of weights for features of unit deviation."""
    return cross_entropy(states @ (weights / deviation(states)).T, labels) + penalty / 2 * weights.square().sum()


def deviation(states):
    found = states.std(0, correction=0)
    return torch.where(found > 0, found, 1.0)


def test_no_weights_near_the_regressions_are_better():
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(60, 5, generator=generator, dtype=torch.float64) * torch.tensor([1, 100, 1e-3, 0, 5])
    states[:, 3] = 2.0
    labels = (states[:, 0] + torch.randn(60, generator=generator) > 0).long() + (states[:, 1] > 100).long()
    weights = (logistic_regression(states, labels, 3, 0.1) * deviation(states)).requires_grad_()
    best = objective(weights, states, labels, 0.1)
    (gradient,) = torch.autograd.grad(best, weights)
    assert gradient.abs().max() < 1e-5
    assert best < objective(torch.zeros_like(weights), states, labels, 0.1) - 0.1
    assert logistic_regression(states, labels, 3, 1e9).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("recipe", "message"),
    [({"probe_penalty": 0}, "more than 0"), ({"probe_penalty": 1, "zero_head": True}, "says where the head starts")],
)
def test_recipes_of_probes_are_checked(recipe, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**recipe)


def probed(generated, **recipe):
    settings = {**generated.members[0].training, "probe_penalty": 0.05, "learning_rate": 1e-12, **recipe}
    return replace(generated.members[0], training=settings)


@pytest.mark.slow
def test_training_starts_with_the_head_that_fits_what_the_base_says_of_the_battles_in_both_orders(generated, tmp_path):
    member, steps = probed(generated), []
    fit(tmp_path, generated, member, lambda step, total, values: steps.append((step, total)))
    # 64 sequences in batches of 16, then 32 battles in batches of 8.
    assert steps == [(step, 4 + 4) for step in range(1, 9)]

    with quiet_transformers():
        base = AutoModel.from_pretrained(member.base, dtype=torch.float32, attn_implementation="eager")
    rows = read_labelled(generated.data.train, generated.labels)
    tokenizer, partner = tokenizer_of(member, base_folder(member)), swapped_label_order(generated.labels)
    encoded = tokenizer.encode_batch([*rows.battles, *(battle.swapped() for battle in rows.battles)])
    with torch.inference_mode():
        ids = [torch.as_tensor(battle.ids.astype("int64"))[None] for battle in encoded]
        states = torch.cat([base(input_ids=row).last_hidden_state[:, -1] for row in ids]).clone()
    labels = torch.tensor([*rows.targets.tolist(), *(partner[target] for target in rows.targets.tolist())])
    saved = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"]
    expected = logistic_regression(states, labels, 3, 0.05).float()
    torch.testing.assert_close(saved, expected, rtol=1e-3, atol=1e-4)
    assert cross_entropy(states @ saved.T, labels) < 1.05  # of guessing: 1.099


@pytest.mark.slow
def test_a_probe_that_is_interrupted_leaves_no_checkpoint_and_a_resumed_run_does_not_probe_again(generated, tmp_path):
    member, steps = probed(generated), []
    with pytest.raises(Interrupted, match="before its first step"):
        fit(tmp_path, generated, member, lambda *_: None, stop=lambda: True)
    assert last_checkpoint(tmp_path / "checkpoints") is None

    with pytest.raises(Interrupted, match="a checkpoint after step 1 of 4"):
        fit(tmp_path, generated, member, lambda step, *_: steps.append(step), stop=lambda: len(steps) > 4)
    fit(tmp_path, generated, member, lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_recipe_without_a_probe_is_recorded_without_it(generated):
    plain, probing = generated.members[0], probed(generated)
    assert "probe_penalty" not in adapter_stage(generated, plain).made_from["recipe"]
    assert adapter_stage(generated, probing).made_from["recipe"]["probe_penalty"] == 0.05
