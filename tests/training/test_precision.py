"""What a recipe's precision and gradient checkpointing do to the arithmetic of training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP

from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.rows import read_labelled
from preference_training.fit.encoding import collate, encode, tokenizer_of
from preference_training.fit.model import base_folder, classifier
from preference_training.fit.recipe import Recipe
from preference_training.fit.trainer import MemberTrainer, fit

pytestmark = pytest.mark.slow

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("name", ["gemma", "llama"])
@pytest.mark.parametrize("precision", DTYPES)
def test_lora_multiplies_in_the_recipes_precision_although_it_is_held_in_32_bits(generated, tmp_path, name, precision):
    member = next(member for member in generated.members if member.name == name)
    recipe = Recipe(rank=2, precision=precision)
    with quiet_transformers():
        model = classifier(base_folder(member), member, recipe, 3)
        trainer = MemberTrainer(model=model, args=TrainingArguments(str(tmp_path), report_to=[], use_cpu=True))
    trainer.recipe = recipe
    multiplied = {}

    def seen(where):
        return lambda module, inputs, output: multiplied.setdefault(where, set()).add(output.dtype)

    for path, module in model.named_modules():
        if ".q_proj" in path and isinstance(module, torch.nn.Linear):
            module.register_forward_hook(seen(path.split(".q_proj.")[-1]))
            assert "lora" not in path or module.weight.dtype == torch.float32
    data = read_labelled(Path(generated.data.validation), generated.labels)
    examples = encode(tokenizer_of(member, Path(member.base)), data, generated.labels, swaps=False)
    loss = trainer.compute_loss(model.train(), collate(examples[:2]))
    expected = {DTYPES[precision]}
    assert multiplied == {"base_layer": expected, "lora_A.default": expected, "lora_B.default": expected}
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("precision", DTYPES)
def test_gradient_checkpointing_computes_layers_again_and_trains_the_same_adapter(
    generated, tmp_path, monkeypatch, precision
):
    computed, forward = [], Gemma2MLP.forward
    monkeypatch.setattr(
        Gemma2MLP, "forward", lambda self, states: computed.append(self.training) or forward(self, states)
    )
    weights, counts = {}, {}
    for is_on in (False, True):
        recipe = {"rank": 2, "precision": precision, "gradient_checkpointing": is_on, "dropout": 0.1}
        member = replace(generated.members[0], training=recipe)
        computed.clear()
        fit(tmp_path / str(is_on), generated, member, lambda *_: None)
        counts[is_on] = sum(computed)
        weights[is_on] = load_file(tmp_path / str(is_on) / "adapter_model.safetensors")
    assert counts[True] == 2 * counts[False] > 0
    assert weights[True].keys() == weights[False].keys()
    for name, tensor in weights[False].items():
        torch.testing.assert_close(weights[True][name], tensor, atol=1e-6, rtol=0)
    assert any(tensor.abs().max() > 0 for name, tensor in weights[True].items() if "lora_B" in name)
