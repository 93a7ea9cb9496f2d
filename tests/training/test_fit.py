"""Fitting: it learns, pools the right token, and saves an adapter that Transformers and PEFT load."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from battle_files import write_csv
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from preference_core.battles.battle import Battle
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import ArtefactError, CheckpointError, ConfigError, SystemFailure, UserError
from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.rows import read_labelled
from preference_training.evaluation.predict import adapter_folder
from preference_training.fit.adapter import adapter_stage
from preference_training.fit.base_shape import shape_of
from preference_training.fit.encoding import collate, encode, tokenizer_of
from preference_training.fit.model import base_folder, check_machine, classifier, pooled_logits
from preference_training.fit.recipe import Recipe, recipe_of
from preference_training.fit.trainer import MemberTrainer, fit
from preference_training.synthetic.write import COLUMNS

pytestmark = pytest.mark.slow


def silent(step, steps, values):
    pass


def write_toy(path, count):
    """Battles whose winner says yes, whichever side it is on; two no tie."""
    answers = [("yes, it is", "no, never", 0), ("no, never", "yes, it is", 1), ("no, never", "no, never", 2)]
    rows = ((index, "a", "b", f"Is it number {index}?", *answers[index % 3]) for index in range(count))
    write_csv(path, COLUMNS, ([*row, *(int(label == column) for column in range(3))] for *row, label in rows))


def test_it_learns_what_can_be_learned(generated, tmp_path):
    write_toy(tmp_path / "toy.csv", 192)
    write_toy(tmp_path / "held_out.csv", 30)
    data = replace(generated.data, train="toy.csv", validation="held_out.csv")
    recipe = {"rank": 16, "alpha": 32, "learning_rate": 1e-2, "batch_size": 16, "epochs": 8}
    member = replace(generated.members[1], training=recipe)
    config = replace(generated, data=data, members=(member,))
    steps = []
    measured = fit(tmp_path, config, member, lambda step, total, values: steps.append((step, total)))
    assert measured["validation_log_loss"] < 0.5
    assert measured["validation_accuracy"] > 0.8
    assert steps == [(step, 96) for step in range(1, 97)]


def test_the_adapter_holds_lora_and_the_trained_head_and_gives_the_measured_logits(generated, tmp_path):
    member = generated.members[0]
    adapter_stage(generated, member).run(lambda folder: fit(folder, generated, member, silent))
    folder = Path(member.adapter)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == member.base
    assert settings["task_type"] == "SEQ_CLS"
    assert "score" in settings["modules_to_save"]
    assert str(tmp_path) not in json.dumps(settings)
    weights = load_file(folder / "adapter_model.safetensors")
    assert weights["base_model.model.score.weight"].shape == (3, 32)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    with quiet_transformers():
        base = AutoModelForSequenceClassification.from_pretrained(member.base, num_labels=3)
        model = PeftModel.from_pretrained(base, folder).eval()
    data = read_labelled(Path(generated.data.validation), generated.labels)
    example = encode(tokenizer_of(member, Path(member.base)), data, generated.labels, swaps=False)[0]
    assert model(torch.tensor(example["input_ids"][None], dtype=torch.int64)).logits.isfinite().all()


def test_the_manifest_says_what_was_measured_and_from_what(generated):
    member = generated.members[0]
    stage = adapter_stage(generated, member)
    stage.run(lambda folder: fit(folder, generated, member, silent))
    manifest = json.loads((stage.folder / "manifest.json").read_text())
    assert manifest["details"]["validation_log_loss"] > 0
    assert manifest["made_from"]["recipe"]["rank"] == 4
    assert set(manifest["versions"]) == {"peft", "torch", "transformers"}


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"rank": 5}},
        {"max_tokens": 80},
        {"template": "qwen"},
    ],
    ids=str,
)
def test_an_adapter_is_stale_once_its_recipe_or_its_reading_changes(generated, change):
    member = generated.members[1]
    adapter_stage(generated, member).run(lambda folder: fit(folder, generated, member, silent))
    assert adapter_stage(generated, replace(member, threads=2, engine="tensorrt")).is_up_to_date()
    assert not adapter_stage(generated, replace(member, **change)).is_up_to_date()


def test_an_adapter_is_stale_once_the_battles_change(generated):
    member = generated.members[1]
    adapter_stage(generated, member).run(lambda folder: fit(folder, generated, member, silent))
    with Path(generated.data.train).open("a") as file:
        file.write("9,a,b,p,x,y,1,0,0\n")
    assert not adapter_stage(generated, member).is_up_to_date()


@pytest.fixture
def llama(generated):
    """The Llama member's model, and the ids of two sequences of which one ends in eos, which is its pad token too."""
    member = generated.members[1]
    with quiet_transformers():
        model = classifier(base_folder(member), member, recipe_of(member), 3).eval()
    tokenizer = tokenizer_of(member, Path(member.base))
    plain, ends_in_eos = (
        tokenizer.encode(Battle(("p",), ("a",), (text,))).ids.tolist()
        for text in ("a longer second answer", "short <|eot_id|>")
    )
    assert ends_in_eos[-1] == model.config.pad_token_id
    assert len(ends_in_eos) != len(plain)
    return model, plain, ends_in_eos


def test_the_last_token_is_pooled_even_when_it_is_the_pad_token(llama):
    model, plain, ends_in_eos = llama
    examples = [{"input_ids": ids, "labels": 0} for ids in (plain, ends_in_eos)]
    batch = collate(examples)
    with torch.no_grad():
        together = pooled_logits(model, batch["input_ids"], batch["attention_mask"], "fp32")
        base = model.get_base_model()
        for row, ids in enumerate((plain, ends_in_eos)):
            hidden = base.model(torch.tensor([ids])).last_hidden_state
            torch.testing.assert_close(together[row], base.score(hidden[0, -1]), atol=1e-5, rtol=0)
        hugging_face = model(torch.tensor([ends_in_eos])).logits[0]
    assert (hugging_face - together[1]).abs().max() > 1e-4


def test_without_eos_at_the_end_pooling_is_that_of_transformers(llama):
    model, plain, _ = llama
    ids = torch.tensor([plain])
    with torch.no_grad():
        torch.testing.assert_close(pooled_logits(model, ids, torch.ones_like(ids), "fp32"), model(ids).logits)


def test_only_the_chosen_layers_get_lora_and_nothing_else_is_trained(generated):
    member = generated.members[0]
    with quiet_transformers():
        model = classifier(base_folder(member), member, Recipe(rank=2, target_modules=("q_proj",), first_layer=1), 3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".layers.")[-1].split(".")[0] for name in trained if "lora" in name} == {"1"}
    assert {name for name in trained if "lora" not in name} == {"base_model.model.score.modules_to_save.default.weight"}


def test_a_head_that_starts_at_zero_finds_all_labels_equally_likely_and_is_trained(generated, tmp_path):
    member = generated.members[0]
    zero, random = (replace(member, training={**member.training, "zero_head": start}) for start in (True, False))
    with quiet_transformers():
        model = classifier(base_folder(zero), zero, recipe_of(zero), 3)
    ids = torch.tensor([[5, 6, 7]])
    assert (pooled_logits(model, ids, torch.ones_like(ids), "fp32") == 0).all()
    fit(tmp_path, generated, zero, silent)
    assert load_file(tmp_path / "adapter_model.safetensors")["base_model.model.score.weight"].abs().min() > 0
    made_from = [adapter_stage(generated, each).made_from["recipe"] for each in (zero, random, member)]
    assert made_from[0] != made_from[1] == made_from[2]


def test_a_target_that_names_no_module_of_the_base_is_named(generated, capsys):
    recipe = {**generated.members[0].training, "target_modules": ["q_proj", "vproj"]}
    member = replace(generated.members[0], training=recipe)
    adapter_stage(generated, member).run(lambda folder: fit(folder, generated, member, silent))
    said = capsys.readouterr().err
    assert "`gemma`: `target_modules` names `vproj`, and no linear layer of the base is called so" in said
    assert said.count("warning:") == 1


def test_training_reads_what_serving_reads_and_swaps_labels_with_responses(generated):
    member = generated.members[0]
    tokenizer = tokenizer_of(member, Path(member.base))
    data = read_labelled(Path(generated.data.train), LABELS_THREE_WAY)
    examples = encode(tokenizer, data, LABELS_THREE_WAY, swaps=True)
    for battle, target, example in zip(data.battles, data.targets, examples, strict=True):
        assert example["input_ids"].tolist() == tokenizer.encode(battle).ids.tolist()
        assert example["swapped"]["input_ids"].tolist() == tokenizer.encode(battle.swapped()).ids.tolist()
        assert example["swapped"]["labels"] == {0: 1, 1: 0, 2: 2}[target]
        assert len(example["input_ids"]) <= member.max_tokens


def test_batches_are_padded_to_their_longest_on_the_right():
    examples = [{"input_ids": [5, 6, 7], "labels": 1}, {"input_ids": [8], "labels": 2}]
    batch = collate(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_quantised_base_without_a_gpu_is_one_clear_error(config, quantisation):
    with pytest.raises(SystemFailure, match="needs bitsandbytes and an NVIDIA GPU; no GPU was found") as caught:
        check_machine(config.members[0], Recipe(quantisation=quantisation))
    assert 'quantisation = "none"' in caught.value.hint


@pytest.mark.parametrize(("metric", "best"), [("log_loss", min), ("accuracy", max)])
def test_early_stopping_keeps_the_best_state(generated, tmp_path, monkeypatch, metric, best):
    evaluations, evaluate = [], MemberTrainer.evaluate

    def noted(self, *arguments, **options):
        evaluations.append(evaluate(self, *arguments, **options))
        return evaluations[-1]

    monkeypatch.setattr(MemberTrainer, "evaluate", noted)
    recipe = {"epochs": 12, "evaluations_per_epoch": 1, "early_stopping_patience": 2, "best_metric": metric}
    member = replace(generated.members[0], training={**recipe, "batch_size": 16, "rank": 2, "learning_rate": 2e-2})
    measured = fit(tmp_path / "adapter", replace(generated, members=(member,)), member, silent)
    *while_training, final = [evaluation[f"eval_{metric}"] for evaluation in evaluations]
    assert 3 <= len(while_training) < 12
    assert measured[f"validation_{metric}"] == final == pytest.approx(best(while_training), abs=1e-6)
    assert abs(while_training[-1] - final) > 1e-3
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_early_stopping_needs_validation_battles(generated, tmp_path):
    member = replace(generated.members[0], training={"evaluations_per_epoch": 1, "early_stopping_patience": 1})
    config = replace(generated, data=replace(generated.data, validation=None))
    with pytest.raises(ConfigError, match=r"needs `data\.validation`"):
        fit(tmp_path, config, member, silent)


@pytest.mark.parametrize("validation", [True, False])
def test_a_loss_that_is_not_finite_is_an_error_and_leaves_no_adapter(generated, validation):
    member = replace(generated.members[1], training={"learning_rate": 1e30, "max_gradient_norm": 1e30})
    config = generated if validation else replace(generated, data=replace(generated.data, validation=None))
    with pytest.raises(SystemFailure, match="The training of `llama` diverged"):
        adapter_stage(config, member).run(lambda folder: fit(folder, config, member, silent))
    assert not Path(member.adapter).exists()


@pytest.mark.parametrize("labels", [1, 3])
def test_a_base_may_be_a_classifier(generated, tmp_path, labels):
    member = generated.members[1]
    shutil.copytree(member.base, tmp_path / "rewards")
    with quiet_transformers():
        rewards = AutoModelForSequenceClassification.from_pretrained(member.base, num_labels=labels)
        torch.nn.init.normal_(rewards.score.weight, std=0.02)
        rewards.save_pretrained(tmp_path / "rewards")
        other = replace(member, base=str(tmp_path / "rewards"))
        model = classifier(tmp_path / "rewards", other, recipe_of(other), 3)
    head = model.get_base_model().score.weight
    assert head.shape == (3, 32)
    assert torch.equal(head, rewards.score.weight) == (labels == 3)
    fit(tmp_path / "adapter", generated, other, silent)
    assert load_file(tmp_path / "adapter/adapter_model.safetensors")["base_model.model.score.weight"].shape == (3, 32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"intermediate_size": 48},
            r"`model\.layers\.0\.mlp\.down_proj\.weight` of .* has shape \[32, 64\], and .* \[32, 48\], and 5 more",
        ),
        ({"num_hidden_layers": 3}, r"has no `model\.layers\.2\.input_layernorm\.weight`, and 8 more"),
    ],
)
def test_a_base_that_contradicts_its_configuration_is_refused(generated, tmp_path, changed, message):
    member = generated.members[1]
    shutil.copytree(member.base, tmp_path / "odd")
    settings = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps(settings | changed))
    with pytest.raises(CheckpointError, match=message):
        classifier(tmp_path / "odd", replace(member, base=str(tmp_path / "odd")), recipe_of(member), 3)


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(generated, tmp_path):
    member = generated.members[0]
    with quiet_transformers():
        smaller = AutoModelForCausalLM.from_pretrained(member.base)
    smaller.resize_token_embeddings(300)
    smaller.save_pretrained(tmp_path / "smaller")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(member.base) / name, tmp_path / "smaller")
    other = replace(member, base=str(tmp_path / "smaller"))
    with pytest.raises(ConfigError, match=r"`gemma`: the tokenizer makes ids up to \d+ .* embeddings for 300 tokens"):
        fit(tmp_path / "adapter", generated, other, silent)


def test_a_base_that_is_no_checkpoint_is_named(config):
    with pytest.raises(UserError, match="`build/small/bases/gemma`"):
        base_folder(config.members[0])


@pytest.mark.parametrize("needs_it", [base_folder, shape_of, "adapter_stage", adapter_folder])
def test_a_hub_id_without_a_revision_is_refused_by_all_that_needs_it(generated, needs_it):
    member = replace(generated.members[0], base="google/gemma-2-2b")
    if needs_it is adapter_folder:
        member = replace(generated.members[0], adapter="someone/lora")
    with pytest.raises(CheckpointError, match=r"`gemma` is .*: there is no such folder, and a hub id needs `"):
        adapter_stage(generated, member) if needs_it == "adapter_stage" else needs_it(member)


def test_a_member_without_an_adapter_folder_is_refused(generated):
    with pytest.raises(ConfigError, match="`adapter` of `gemma` is missing"):
        adapter_stage(generated, replace(generated.members[0], adapter=None))


def test_a_tokenizer_without_the_templates_special_token_is_refused(generated):
    member = replace(generated.members[1], template="gemma")
    table = Path(member.base) / "tokenizer_config.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "eos_token": None}))
    with pytest.raises(ArtefactError, match="needs a eos token"):
        tokenizer_of(member, Path(member.base))
