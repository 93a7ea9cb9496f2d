"""Every trained tensor counts: what the packed decoder would leave out is refused by name, whatever holds it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from preference_core.errors import CheckpointError
from preference_export.checkpoint.adapter import AdapterError

PROJECTION = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(make, tmp_path_factory):
    return make.base(tmp_path_factory.mktemp("unread") / "base", "llama")


@pytest.fixture
def headed(make, tmp_path):
    return make.base(tmp_path / "headed", "llama", head=True)


def add_tensors(folder, tensors, file="model.safetensors"):
    save_file({**load_file(folder / file), **tensors}, folder / file, metadata={"format": "pt"})


def with_a_biased_head(model):
    model.score = nn.Linear(model.config.hidden_size, 3, bias=True)


@pytest.mark.parametrize("lora", [{}, {"task": None, "modules_to_save": ["score"]}], ids=["implied", "named"])
def test_an_adapter_whose_head_has_a_bias(make, base, tmp_path, lora):
    adapter = make.adapter(tmp_path / "adapter", base, change=with_a_biased_head, **lora)
    with pytest.raises(
        AdapterError, match=r"trained `score\.bias`, which this architecture has no place for"
    ) as caught:
        make.weights(base, adapter)
    assert "bias=False" in caught.value.hint


def test_one_of_several_adapters_whose_head_has_a_bias(make, base, tmp_path):
    one = make.adapter(tmp_path / "one", base)
    other = make.adapter(tmp_path / "other", base, change=with_a_biased_head)
    with pytest.raises(AdapterError, match=r"other` trained `score\.bias`"):
        make.weights(base, one, other)


@pytest.mark.parametrize(
    "name",
    [
        "score.bias",
        f"{PROJECTION}.bias",
        f"{PROJECTION}.lora_A.weight",
        "layers.0.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.norm.bias",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
    ],
)
def test_a_base_with_a_tensor_that_would_be_left_out(make, headed, name):
    add_tensors(headed, {name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=rf"holds the tensor `{name}`, which this architecture has no place for"):
        make.weights(headed)


@pytest.mark.parametrize(("dtype", "named"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_codes_without_their_scales_are_no_weights(make, headed, dtype, named):
    add_tensors(headed, {f"{PROJECTION}.weight": torch.ones(48, 48).to(dtype)})
    with pytest.raises(
        CheckpointError, match=rf"{PROJECTION}\.weight` of .* is stored as {named}, expected one of F64"
    ):
        make.weights(headed)


def test_other_heads_and_buffers_of_a_published_base_are_left_alone(make, headed, tmp_path):
    """`lm_head` beside a head for scores, and the rotary buffers that checkpoints of transformers 4.30 hold."""
    expected = make.weights(headed).tensor("score.weight")
    add_tensors(
        headed,
        {
            "lm_head.weight": torch.ones(4),
            "v_head.summary.weight": torch.ones(4),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "model.rotary_emb.inv_freq": torch.ones(4),
        },
    )
    assert torch.equal(make.weights(headed).tensor("score.weight"), expected)


def test_a_bias_of_the_bases_own_head_does_not_matter_where_the_adapter_brings_another_head(make, headed, tmp_path):
    adapter = make.adapter(tmp_path / "adapter", headed)
    expected = make.merged_by_peft(headed, adapter)
    add_tensors(headed, {"score.bias": torch.ones(3)})
    assert torch.equal(make.weights(headed, adapter).tensor("score.weight"), expected["score.weight"])


@pytest.mark.parametrize(
    ("modules", "targets"),
    [(["norm"], ["q_proj"]), (["mlp"], ["q_proj"]), (["layers.1"], r".*layers\.0\..*_proj")],
    ids=["an ending of several names", "modules that hold others", "a whole layer"],
)
def test_modules_are_saved_whole_by_the_rule_of_peft(make, base, tmp_path, modules, targets):
    """A name stands for every module that ends in it, as text, and for all that such a module holds."""
    adapter = make.adapter(tmp_path / "adapter", base, modules_to_save=modules, target_modules=targets)
    weights, expected = make.weights(base, adapter), make.merged_by_peft(base, adapter)
    assert any(name.endswith("norm.weight") or ".mlp." in name for name in weights.adapters[0].saved)
    for name in weights.shapes:
        assert torch.equal(weights.tensor(name), expected[name]), name


def test_an_adapter_that_lacks_a_module_it_says_it_saved(make, base, tmp_path):
    adapter = make.adapter(tmp_path / "adapter", base, modules_to_save=["embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.embed_tokens.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"no tensor `model\.embed_tokens\.weight`, which its `modules_to_save`"):
        make.weights(base, adapter)


def test_an_adapter_with_a_name_of_its_own_lies_in_a_folder_below(make, base, tmp_path):
    make.adapter(tmp_path / "adapter" / "mine", base)
    with pytest.raises(AdapterError, match=r"holds no adapter: there is no `adapter_config\.json`") as caught:
        make.weights(base, tmp_path / "adapter")
    assert f"`{tmp_path / 'adapter' / 'mine'}`" in caught.value.hint


def test_a_folder_without_an_adapter(make, base, tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(AdapterError, match="holds no adapter"):
        make.weights(base, tmp_path / "adapter")
