"""A tokenizer that puts other special tokens round a text than the template is refused, unless a key says why."""

import json

import pytest
from tokenizers import Tokenizer, processors

from preference_core.battles.template import PRESETS
from preference_core.ensemble.member_tokenizer import settings_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.ensemble.special_tokens import check_special_tokens, voices_of
from preference_core.errors import ArtefactError
from preference_training.synthetic.tiny_tokenizer import train_tokenizer


@pytest.fixture
def gemma(tmp_path):
    """A checkpoint's tokenizer as published: bos, and no eos."""
    train_tokenizer("gemma2", ["which answer is better, and why? " * 9], 700).save(tmp_path)
    return tmp_path


def flag(folder, **flags):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **flags}))


def post_process(folder, single):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = [(token, tokenizer.token_to_id(token)) for token in ("<bos>", "<eos>")]
    tokenizer.post_processor = processors.TemplateProcessing(single, None, special)
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="<pad>")  # Padding is not what stands round a text.
    tokenizer.save(str(folder / "tokenizer.json"))


def check(folder, own=False, **settings):
    member = Classifier(name="m", base="b", max_tokens=64, **{"template": "gemma", **settings})
    tokenisation = settings_of_checkpoint(folder, member)
    check_special_tokens(member, "origin", tokenisation, voices_of(folder, tokenisation), own=own)


def test_a_base_that_adds_no_eos_is_refused_with_both_named_and_both_ways_out(gemma):
    with pytest.raises(ArtefactError) as caught:
        check(gemma)
    assert "`<bos> TEXT <eos>`" in caught.value.message
    assert "`post_processor` in tokenizer.json says `<bos> TEXT`" in caught.value.message
    assert "`add_bos_token` and `add_eos_token` in tokenizer_config.json says `<bos> TEXT`" in caught.value.message
    assert "add_bos = true, add_eos = false" in caught.value.hint
    assert 'special_tokens = "template"' in caught.value.hint
    check(gemma, special_tokens="template")


def test_an_own_template_that_does_as_the_tokenizer_does_passes(gemma):
    check(gemma, template=PRESETS["llama"])


def test_a_template_without_the_tokenizers_bos_is_refused(gemma):
    with pytest.raises(ArtefactError, match="makes of a text `TEXT`"):
        check(gemma, template="qwen")


def test_a_tokenizer_that_adds_eos_by_its_post_processor_and_its_flag_passes(gemma):
    post_process(gemma, "<bos> $A <eos>")
    flag(gemma, add_eos_token=True)
    check(gemma)


def test_a_flag_that_contradicts_the_post_processor_needs_the_key(gemma):
    flag(gemma, add_eos_token=True)
    with pytest.raises(ArtefactError, match=r"`post_processor` in tokenizer\.json says `<bos> TEXT`"):
        check(gemma)
    check(gemma, own=True, special_tokens="template")


def test_the_key_does_not_overrule_a_tokenizer_that_was_saved_with_the_adapter(gemma):
    with pytest.raises(ArtefactError) as caught:
        check(gemma, own=True, special_tokens="template")
    assert "remove this one's files from `origin`" in caught.value.hint


def test_a_bos_token_that_contradicts_the_post_processor_is_refused(gemma):
    flag(gemma, bos_token="<mask>")
    with pytest.raises(ArtefactError, match=r"makes of a text `<mask> TEXT`.*says `<bos> TEXT`"):
        check(gemma, template=PRESETS["llama"])


def test_tokens_that_only_the_older_map_names_are_read(gemma):
    table = json.loads((gemma / "tokenizer_config.json").read_text())
    del table["eos_token"]
    (gemma / "tokenizer_config.json").write_text(json.dumps(table))
    assert (
        settings_of_checkpoint(gemma, Classifier(name="m", base="b", template="gemma", max_tokens=64)).eos_token
        == "<eos>"
    )
