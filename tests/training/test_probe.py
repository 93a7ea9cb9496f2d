"""The head that starts as a logistic regression on the states of the base."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModel

from preference_core.battles.battle import swapped_label_order
from preference_core.errors import ConfigError, Interrupted, SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.rows import read_labelled
from preference_training.fit import probe
from preference_training.fit.adapter import adapter_stage
from preference_training.fit.encoding import tokenizer_of
from preference_training.fit.model import base_folder
from preference_training.fit.probe import STATES_FILE, logistic_regression
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
def test_a_probe_that_is_interrupted_reads_on_and_ends_with_the_same_adapter(generated, tmp_path):
    member, steps, whole = probed(generated, learning_rate=1e-3), [], tmp_path / "whole"
    fit(whole, generated, member, lambda *_: None)

    folder = tmp_path / "interrupted"
    for last in (2, 3, 5):  # in the probe, in it again, and after the first step of training
        with pytest.raises(Interrupted, match="what its probe has read is kept" if last < 4 else "after step 1 of 4"):
            fit(
                folder,
                generated,
                member,
                lambda step, *_: steps.append(step),
                stop=lambda last=last: len(steps) == last,
            )
    assert len(np.load(folder / "checkpoints" / STATES_FILE)) == 64
    fit(folder, generated, member, lambda step, *_: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (folder / "checkpoints").exists()
    file = "adapter_model.safetensors"
    assert (folder / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [{"swap_probability": 0.0}, {"precision": "bf16"}, {"gradient_checkpointing": True}], ids=str
)
def test_a_probe_goes_with_other_recipes(generated, tmp_path, recipe):
    total = []
    measured = fit(tmp_path, generated, probed(generated, **recipe), lambda step, steps, values: total.append(steps))
    assert set(total) == {4 + (2 if recipe.get("swap_probability") == 0 else 4)}
    assert measured["train_loss"] < 1.0986


@pytest.mark.slow
def test_states_that_are_not_finite_end_the_training_before_its_first_step(generated, tmp_path, monkeypatch):
    real = probe.pooled_states
    monkeypatch.setattr(probe, "pooled_states", lambda *inputs: real(*inputs).index_fill(0, torch.tensor(1), torch.inf))
    with pytest.raises(SystemFailure, match=r"4 of 64 texts is not finite in fp32"):
        fit(tmp_path, generated, probed(generated), lambda *_: None)


def test_a_recipe_without_a_probe_is_recorded_without_it(generated):
    plain, probing = generated.members[0], probed(generated)
    assert "probe_penalty" not in adapter_stage(generated, plain).made_from["recipe"]
    assert adapter_stage(generated, probing).made_from["recipe"]["probe_penalty"] == 0.05
