"""Recipes: every key is checked, and the committed configurations are valid."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from preference_core.ensemble.loading import load_config
from preference_core.ensemble.locations import Location, is_hub_id
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ConfigError
from preference_training.fit import adapter
from preference_training.fit.recipe import Recipe, recipe_of
from preference_training.members import chosen_members
from preference_training.synthetic.generate import generation_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_committed_configurations_hold_valid_recipes(path):
    config = load_config(path, include_may_be_missing=True)
    generation_of(config)
    assert all(recipe_of(member).rank for member in chosen_members(config, None, Classifier))


def test_configurations_that_name_the_same_adapter_would_train_the_same_one(monkeypatch):
    monkeypatch.setattr(adapter, "content_of", str)  # battles and tiny bases are not here; their names are
    monkeypatch.setattr(Location, "is_on_hub", lambda location: is_hub_id(location.name))
    trained = defaultdict(dict)
    for path in CONFIGS:
        config = load_config(path, include_may_be_missing=True)
        for member in chosen_members(config, None, Classifier):
            trained[member.adapter][path.stem] = adapter.adapter_stage(config, member).made_from
    assert set(trained["checkpoints/gemma-lora"]) == set(trained["checkpoints/llama-lora"])
    assert set(trained["checkpoints/gemma-lora"]) == {"average", "lmsys", "lmsys-int8"}
    for folder, by_config in trained.items():
        first, *others = by_config.values()
        assert all(other == first for other in others), f"{folder} in {', '.join(by_config)}"


def test_an_unknown_key_names_the_nearest(config):
    member = replace(config.members[0], training={"learnig_rate": 1e-4})
    with pytest.raises(ConfigError, match=r"member\.gemma\.training\.learnig_rate") as caught:
        recipe_of(member)
    assert "learning_rate" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"epochs": 0.0},
        {"label_smoothing": 1.0},
        {"swap_probability": 1.1},
        {"target_modules": ()},
        {"early_stopping_patience": 3},
        {"first_layer": 5, "last_layer": 4},
        {"seed": -1},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        Recipe(**wrong)


def test_layers_are_counted_from_zero_and_include_the_last():
    assert Recipe().layers(4) is None
    assert Recipe(first_layer=1, last_layer=2).layers(4) == [1, 2]
    assert Recipe(first_layer=2).layers(4) == [2, 3]
    with pytest.raises(ConfigError, match="the base has layers 0 to 3"):
        Recipe(last_layer=4).layers(4)
