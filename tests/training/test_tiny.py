"""Tiny bases: genuine checkpoints that Transformers loads, with tokenizers that behave like the published ones."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from preference_core.battles.battle import battle_from_turns
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ConfigError
from preference_core.quiet_libraries import quiet_transformers
from preference_training.fit.encoding import tokenizer_of
from preference_training.synthetic.battles import generate
from preference_training.synthetic.generate import rendered
from preference_training.synthetic.tiny import TinyBase, write_base
from preference_training.synthetic.tiny_tokenizer import train_tokenizer

TEMPLATES = {
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "llama": "llama",
    "mistral": "llama",  # bos, and no eos
    "qwen2": "qwen",
    "qwen3": "qwen",
}
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "key_value_heads": 1, "head_dim": 16}
UNSEEN = "Ünïcödé ሰላም 🦒\t12345\n\n\nend"


@pytest.fixture(scope="module")
def texts():
    return list(rendered(generate(200, 3, "train"), "gemma"))


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def checkpoint(request, texts, tmp_path_factory):
    """The folder of a tiny base, and its architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    write_base(folder, TinyBase(request.param, vocabulary_size=1200, **SHAPE), texts)
    return folder, request.param


@pytest.fixture(scope="module")
def tokenizers(texts):
    return {family: train_tokenizer(family, texts, 1200).tokenizer for family in TEMPLATES}


def test_transformers_loads_it_as_a_language_model_and_as_a_classifier(checkpoint):
    folder, architecture = checkpoint
    ids = AutoTokenizer.from_pretrained(folder)("Which answer is better?", return_tensors="pt")["input_ids"]
    with quiet_transformers(), torch.no_grad():
        language_model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, use_safetensors=True)
        assert language_model(ids).logits.shape == (*ids.shape, 1200)
        logits = classifier(ids).logits
    assert classifier.config.model_type == architecture
    assert logits.shape == (1, 3)
    assert logits.isfinite().all()


def test_llama_stretches_its_rotary_frequencies(checkpoint):
    folder, architecture = checkpoint
    if architecture == "llama":
        config = AutoModelForCausalLM.from_pretrained(folder).config
        assert config.rope_parameters["rope_type"] == "llama3"


def test_serving_reads_battles_as_its_hugging_face_tokenizer_does(checkpoint, texts):
    folder, architecture = checkpoint
    template = TEMPLATES[architecture]
    member = Classifier(name="tiny", base=str(folder), template=template, special_tokens="template", max_tokens=8000)
    hugging_face = AutoTokenizer.from_pretrained(
        folder, add_bos_token=template != "qwen", add_eos_token=template == "gemma"
    )
    battles = list(generate(175, 5, "test"))
    tokenizer = tokenizer_of(member, folder)
    for battle, text in zip(battles, rendered(iter(battles), template), strict=True):
        turns = ([turn or "" for turn in field] for field in (battle.prompt, battle.response_a, battle.response_b))
        assert tokenizer.encode(battle_from_turns(*turns)).ids.tolist() == hugging_face(text)["input_ids"]


def test_a_base_is_the_same_for_the_same_seed_only(texts, tmp_path):
    weights = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        write_base(tmp_path / name, TinyBase("llama", vocabulary_size=700, seed=seed, **SHAPE), texts[:40])
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_writing_a_base_leaves_the_global_random_state_alone(texts, tmp_path):
    before = torch.get_rng_state()
    write_base(tmp_path, TinyBase("llama", vocabulary_size=700, **SHAPE), texts[:40])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_every_text_survives_a_round_trip(tokenizers, family):
    tokenizer: Tokenizer = tokenizers[family]
    ids = tokenizer.encode(UNSEEN, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == UNSEEN


def test_gemma_falls_back_to_bytes_and_keeps_runs_of_line_breaks_whole(tokenizers):
    tokens = tokenizers["gemma2"].encode("a\n\n\nሰ").tokens
    assert tokens[0] == "<bos>"
    assert "\n\n\n" in tokens
    assert tokens[-3:] == ["<0xE1>", "<0x88>", "<0xB0>"]


def test_gemma_marks_spaces_and_has_no_prefix_space(tokenizers):
    assert "".join(tokenizers["gemma2"].encode("the  answer", add_special_tokens=False).tokens) == "the▁▁answer"


@pytest.mark.parametrize(
    ("family", "token"),
    [("gemma2", "<eos>"), ("gemma2", "<pad>"), ("llama", "<|eot_id|>"), ("qwen2", "<|endoftext|>")],
)
def test_special_tokens_in_a_text_become_one_id(tokenizers, family, token):
    tokenizer = tokenizers[family]
    assert tokenizer.token_to_id(token) in tokenizer.encode(f"before {token} after").ids


def test_the_first_ids_of_gemma_are_its_control_tokens(tokenizers):
    assert [tokenizers["gemma2"].id_to_token(i) for i in range(4)] == ["<pad>", "<eos>", "<bos>", "<unk>"]


def test_mistral_puts_a_space_before_the_text_and_falls_back_to_bytes(tokenizers):
    tokens = tokenizers["mistral"].encode("the\tሰ").tokens
    assert tokens[0] == "<s>"
    assert tokens[1].startswith("▁")
    assert "<0x09>" in tokens
    assert tokens[-1] == "<0xB0>"


def test_llama_begins_with_bos_and_qwen_with_the_text(tokenizers):
    assert tokenizers["llama"].encode("x").tokens == ["<|begin_of_text|>", "x"]
    assert tokenizers["qwen2"].encode("x").tokens == ["x"]


def test_llama_groups_three_digits_and_qwen_none(tokenizers):
    split = {
        family: [piece for piece, _ in tokenizers[family].pre_tokenizer.pre_tokenize_str("12345")]
        for family in ("llama", "qwen2")
    }
    assert split == {"llama": ["123", "45"], "qwen2": list("12345")}


def test_qwen_composes_characters(tokenizers):
    assert tokenizers["qwen2"].encode("e\u0301").ids == tokenizers["qwen2"].encode("é").ids
    assert tokenizers["llama"].encode("e\u0301").ids != tokenizers["llama"].encode("é").ids


def test_a_vocabulary_too_small_for_the_fixed_tokens_is_refused(texts):
    with pytest.raises(ConfigError, match="`vocabulary_size` is 200, a gemma2 tokenizer needs over"):
        train_tokenizer("gemma2", texts, 200)


@pytest.mark.parametrize("wrong", [{"head_dim": 15}, {"key_value_heads": 3}])
def test_shapes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TinyBase("llama", **{**SHAPE, **wrong})
