"""The tiny twin of an ensemble: the same members, templates, recipes and combination, on random bases a CPU can train.

What a twin shows is that a configuration's whole path works (train, export, serve, score, evaluate), through the same
code as the real one. It says nothing of how good the real one is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preference_core.ensemble.folders import Folders
from preference_core.ensemble.loading import read_config_file
from preference_core.ensemble.published import Shape
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline
from preference_core.errors import ConfigError
from preference_core.structure import plain, structure
from preference_training.battles.split import Split
from preference_training.fit.base_shape import shape_of
from preference_training.fit.recipe import recipe_of
from preference_training.members import chosen_members
from preference_training.synthetic.generate import generation_of
from preference_training.toml import toml_text

LAYERS = 3
HEAD_DIM = 24
BATTLES = {"train": 400, "validation": 120, "test": 120, "seed": 42}
#: Battles of the twin's 640 that are kept where the real split draws a sample.
SAMPLE = 600

#: Tokens of the twin for each of the real one, within bounds: generated battles have about 100.
TOKEN_SCALE = 192 / 2048
FEWEST_TOKENS, MOST_TOKENS = 96, 256

MOST_RANK = 8
#: A published rate would not move a random base in a few dozen steps.
LEARNING_RATE = 3e-3


def write_twin(source: Path, out: Path) -> str:
    """Writes the twin of the configuration `source` to `out`; returns its name.

    Raises `ConfigError` for a base whose architecture has no tiny base.
    """
    if out.resolve() == source.resolve():
        raise ConfigError(f"`{out}` is the configuration itself", hint="Name another file for its twin.")
    table = twin_of(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f"# The tiny twin of {source.name}, written by `preference-train twin`.\n\n{toml_text(table)}", encoding="utf-8"
    )
    return str(table["name"])


def twin_of(source: Path) -> dict[str, Any]:
    """The checked table of the twin."""
    file = read_config_file(source)
    config = file.config(include_may_be_missing=True)
    generation = generation_of(config)
    if generation.tiny:
        raise ConfigError(f"`{source}` needs no twin: its bases are tiny already", hint="Use it as it is.")
    name = f"{config.name}-twin"
    folders = Folders(name)
    data = {part: (folders.data / f"{part}.csv").as_posix() for part in ("train", "validation", "test")}
    classifiers = chosen_members(config, None, Classifier)
    shapes = {member.name: shape_of(member) for member in classifiers}
    given = {member.name: table for member, table in zip(config.members, file.table["member"], strict=True)}
    members = {m.name: _classifier(folders, m, given[m.name], shapes[m.name]) for m in classifiers}
    members |= {m.name: _length_baseline(folders, m) for m in chosen_members(config, None, LengthBaseline)}
    twin: dict[str, Any] = {
        "name": name,
        "labels": list(config.labels),
        "member": [members[name] for name in given],
        "combine": _combine(name, config, file.table.get("combine", {})),
        "serving": file.table.get("serving", {}),
        "data": {**data, "sample": data["validation"]},
        "training": {
            "battles": BATTLES,
            **_split(folders, generation.split),
            "baseline": plain(generation.baseline),
            "tiny": {
                member.name: _base(member, shapes[member.name], seed) for seed, member in enumerate(classifiers, 1)
            },
        },
    }
    _check(twin)
    return twin


def _check(twin: Mapping[str, Any]) -> None:
    """Raises the `ConfigError` that reading the twin would raise."""
    combine = {key: value for key, value in twin["combine"].items() if key != "include"}
    checked = structure(Config, {**twin, "combine": combine})
    generation_of(checked)
    for member in chosen_members(checked, None, Classifier):
        recipe_of(member).layers(LAYERS)


def _split(folders: Folders, split: Split | None) -> dict[str, Any]:
    """The real split of the twin's generated battles: its shares, strata and seed."""
    if split is None:
        return {}
    table = {**plain(split), "source": folders.source.as_posix()}
    if split.sample is not None:
        table["sample"] = SAMPLE
    return {"split": table}


def _combine(name: str, config: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """The rule of the real ensemble; weights that it takes from a file are fitted again for the twin."""
    if "include" not in given:
        return dict(plain(config.combine))
    return {**{key: value for key, value in given.items() if key != "include"}, "include": f"{name}-weights.toml"}


def _length_baseline(folders: Folders, member: LengthBaseline) -> dict[str, Any]:
    return {"name": member.name, "kind": member.kind, "base": folders.baseline.as_posix()}


def _classifier(folders: Folders, member: Classifier, given: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    """Where it is and how it is served is the twin's; how it reads a battle, and its recipe, are the real one's."""
    max_tokens = round(min(max(member.max_tokens * TOKEN_SCALE, FEWEST_TOKENS), MOST_TOKENS))
    truncation = dict(given.get("truncation", {}))
    for budget in ("prompt_tokens", "response_tokens"):
        if budget in truncation:
            truncation[budget] = max(2, round(truncation[budget] * max_tokens / member.max_tokens))
    return {
        "name": member.name,
        "base": folders.base(member.name).as_posix(),
        "adapter": folders.adapter(member.name).as_posix(),
        "template": plain(member.template),
        **({} if member.special_tokens is None else {"special_tokens": member.special_tokens}),
        "max_tokens": max_tokens,
        "precision": "fp32",
        "engine": "onnxruntime",
        "truncation": truncation,
        "training": _recipe(member, given.get("training", {}), shape["num_hidden_layers"]),
    }


def _recipe(member: Classifier, given: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The recipe in small: same modules, share of layers, schedule, losses, stopping; no 16 bits, no quantisation."""
    real = recipe_of(member)
    left_out = ("quantisation", "tensorboard", "evaluation_batch_size", "first_layer", "last_layer")
    recipe = {key: value for key, value in given.items() if key not in left_out}
    rank = min(real.rank, MOST_RANK)
    recipe |= {
        "rank": rank,
        "alpha": max(1, round(real.alpha * rank / real.rank)),
        "learning_rate": LEARNING_RATE,
        "batch_size": 8,
        "gradient_accumulation_steps": min(real.gradient_accumulation_steps, 2),
        "epochs": min(real.epochs, 1.0),
        "evaluations_per_epoch": min(real.evaluations_per_epoch, 4),
        "precision": "fp32",
    }
    if real.first_layer is not None:
        recipe["first_layer"] = min(max(real.first_layer * LAYERS // layers, min(real.first_layer, 1)), LAYERS - 1)
    if real.last_layer is not None:
        last = (real.last_layer + 1) * LAYERS // layers - 1
        recipe["last_layer"] = max(last, recipe.get("first_layer", 0))
    return recipe


def _base(member: Classifier, shape: Shape, seed: int) -> dict[str, Any]:
    """A base of the same architecture, with as many query heads to a key head as the real one has."""
    group = shape["num_attention_heads"] // shape["num_key_value_heads"]
    key_value_heads = 2 if group < 3 else 1
    heads = group * key_value_heads
    # Gemma's queries are wider than its hidden state, those of the others are as wide.
    hidden_size = heads * HEAD_DIM - (16 if shape["model_type"].startswith("gemma") else 0)
    base: dict[str, Any] = {
        "architecture": shape["model_type"],
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "layers": LAYERS,
        "heads": heads,
        "key_value_heads": key_value_heads,
        "head_dim": HEAD_DIM,
        "vocabulary_size": 2048,
        "initializer_std": 0.04,
        "seed": seed,
    }
    if shape["model_type"] == "gemma3_text":
        base["sliding_window"] = round(shape["sliding_window"] * TOKEN_SCALE)
    if shape["model_type"] == "llama":
        base["stretched_rope"] = (shape.get("rope_parameters") or {}).get("rope_type") == "llama3"
    return base
