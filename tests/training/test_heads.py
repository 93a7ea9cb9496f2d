"""Three heads: the identities train the shared layers, and nothing of them is left in the adapter."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from preference_core.errors import UserError
from preference_core.files.rows import read_rows
from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.identities import read_identities
from preference_training.battles.rows import read_labelled
from preference_training.fit.battle_order import EpochSampler, TrainingBattles
from preference_training.fit.encoding import add_identities, collate, encode, tokenizer_of
from preference_training.fit.model import base_folder, classifier, identity_logits, pooled_states, preference_logits
from preference_training.fit.recipe import Recipe, recipe_of
from preference_training.fit.trainer import MemberTrainer, fit

pytestmark = pytest.mark.slow

HEADS = {"rank": 2, "batch_size": 16, "swap_probability": 0.5, "identity_loss_weight": 0.5}


def silent(step, steps, values):
    pass


@pytest.fixture
def three_heads(generated):
    """The Llama member with identity heads, its model, and a batch of its training battles."""
    member = replace(generated.members[1], training=HEADS)
    file = Path(generated.data.train)
    identities = read_identities(file)
    examples = encode(
        tokenizer_of(member, Path(member.base)), read_labelled(file, generated.labels), generated.labels, True
    )
    add_identities(examples, identities)
    with quiet_transformers():
        model = classifier(base_folder(member), member, recipe_of(member), 3, len(identities.names))
    return model, examples, identities


def loss_of(model, batch, recipe):
    trainer = MemberTrainer.__new__(MemberTrainer)
    trainer.recipe = recipe
    return trainer.compute_loss(model, batch)


def test_the_vocabulary_is_that_of_the_training_battles(generated):
    identities = read_identities(Path(generated.data.train))
    rows = list(read_rows(Path(generated.data.train)))
    assert list(identities.names) == sorted({row[key] for row in rows for key in ("model_a", "model_b")})
    for row, (first, second) in zip(rows, identities.pairs, strict=True):
        assert (identities.names[first], identities.names[second]) == (row["model_a"], row["model_b"])


def test_the_loss_is_the_weighted_sum_of_three(three_heads):
    model, examples, identities = three_heads
    model.train()
    batch = collate(examples[:6])
    states = pooled_states(model, batch["input_ids"], batch["attention_mask"], "fp32")
    names = identity_logits(model, states)
    assert names.shape == (6, len(identities.names), 2)
    expected = cross_entropy(preference_logits(model, states), batch["labels"])
    for side in (0, 1):
        expected = expected + 0.5 * cross_entropy(names[:, :, side], batch["identities"][:, side])
    torch.testing.assert_close(loss_of(model, batch, Recipe(**HEADS)), expected)


def test_every_head_and_the_shared_layers_get_gradients_from_it(three_heads):
    model, examples, _ = three_heads
    model.train()
    loss_of(model, collate(examples[:6]), Recipe(**HEADS)).backward()
    gradients = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    assert all(value > 0 for name, value in gradients.items() if "lora_B" in name)
    assert gradients["base_model.model.score.modules_to_save.default.weight"] > 0
    assert gradients["base_model.model.identity.modules_to_save.default.weight"] > 0


def test_held_out_losses_are_of_the_preference_alone(three_heads):
    model, examples, _ = three_heads
    model.eval()
    batch = collate(examples[:6])
    states = pooled_states(model, batch["input_ids"], batch["attention_mask"], "fp32")
    torch.testing.assert_close(
        loss_of(model, batch, Recipe(**HEADS)), cross_entropy(preference_logits(model, states), batch["labels"])
    )


def test_an_exchanged_battle_exchanges_its_identities(three_heads):
    _, examples, _ = three_heads
    for example in examples:
        assert example["swapped"]["identities"] == example["identities"][::-1]


def test_the_adapter_holds_the_preference_head_only(generated, tmp_path):
    member = replace(generated.members[1], training=HEADS)
    measured = fit(tmp_path / "heads", generated, member, silent)
    plain = fit(tmp_path / "plain", generated, replace(member, training={**HEADS, "identity_loss_weight": 0.0}), silent)
    saved, alone = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())["modules_to_save"]
        for name in ("heads", "plain")
    )
    assert "score" in saved
    assert saved == alone
    weights, others = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("heads", "plain"))
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in others.items()}
    assert not any("identity" in name for name in weights)
    assert any((weights[name] - others[name]).abs().max() > 1e-5 for name in weights if "lora_B" in name)
    assert measured["trainable_parameters"] == plain["trainable_parameters"]


def test_a_file_that_does_not_say_who_wrote_is_named(tmp_path):
    path = tmp_path / "anonymous.csv"
    path.write_text("id,model_a,model_b\n1,x,y\n2,x,\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 3: there is no `model_b`"):
        read_identities(path)


def test_a_battle_is_swapped_as_often_as_the_recipe_says_again_in_each_epoch():
    example = {"input_ids": [1], "labels": 0, "swapped": {"input_ids": [2], "labels": 1}}
    battles = TrainingBattles([example] * 4000, 0.25, seed=0)
    epochs = []
    for epoch in (0, 1, 0):
        EpochSampler(battles, None).set_epoch(epoch)
        epochs.append([battles[index]["labels"] for index in range(4000)])
    assert sum(epochs[0]) / 4000 == pytest.approx(0.25, abs=0.03)
    assert epochs[0] == epochs[2] != epochs[1]
    assert sum(TrainingBattles([example] * 100, 0.0, seed=0)[index]["labels"] for index in range(100)) == 0


@pytest.mark.parametrize("group_size", [None, 8])
def test_an_epoch_shows_every_battle_once_in_an_order_of_its_own(group_size):
    sampler = EpochSampler(TrainingBattles([{"input_ids": [0] * (i % 50)} for i in range(500)], 0.0, 7), group_size)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(500))
    assert orders[0] == orders[2] != orders[1]
    spreads = [
        max(i % 50 for i in orders[0][n : n + 8]) - min(i % 50 for i in orders[0][n : n + 8]) for n in range(0, 400, 8)
    ]
    assert (max(spreads) < 10) == (group_size == 8)


def test_every_row_has_who_wrote_it_where_the_generator_wrote_it(generated):
    with Path(generated.data.train).open(encoding="utf-8") as file:
        assert all(row["model_a"] != row["model_b"] for row in csv.DictReader(file))
