"""Texts become the ids of training: an adapter's other tokenizer, tokens that stand beside `tokenizer.json`, special
tokens that the template does not add, and classes that Transformers rebuilds are refused."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from preference_core.battles.template import PRESETS
from preference_core.ensemble.member_tokenizer import settings_of_checkpoint
from preference_core.errors import ArtefactError
from preference_export.checkpoint.source import source_of
from preference_export.checkpoint.tokenizer_check import check_reading, check_tokenizers, tokenizer_of

SETTINGS = {
    **{"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "tokenizer_class": "PreTrainedTokenizerFast",
}


@pytest.fixture
def tokenizer(project):
    """The base's tokenizer, to be changed and saved beside the adapter."""
    return Tokenizer.from_file(str(project.folder / "base" / "tokenizer.json"))


def save(project, tokenizer):
    tokenizer.save(str(project.folder / "adapter" / "tokenizer.json"))


def special_tokens_round_the_text(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 1)])


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.enable_padding(pad_id=0, pad_token="<pad>"),
        lambda tokenizer: tokenizer.enable_truncation(8),
        special_tokens_round_the_text,
    ],
    ids=["padding", "truncation", "special tokens"],
)
def test_what_does_not_decide_ids_may_differ(project, tokenizer, change):
    change(tokenizer)
    save(project, tokenizer)
    check_tokenizers(source_of(project.config.members[0]))


def test_an_older_way_to_write_the_same_tokenizer_is_the_same(project, tokenizer):
    table = json.loads(tokenizer.to_str())
    table["model"]["merges"] = [" ".join(pair) for pair in table["model"]["merges"]]
    del table["model"]["ignore_merges"]
    (project.folder / "adapter" / "tokenizer.json").write_text(json.dumps(table))
    check_tokenizers(source_of(project.config.members[0]))


def two_ids_exchanged(tokenizer):
    table = json.loads(tokenizer.to_str())
    vocabulary = table["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    return Tokenizer.from_str(json.dumps(table))


def with_one_more_token(tokenizer):
    tokenizer.add_special_tokens(["<new>"])
    return tokenizer


def in_lower_case(tokenizer):
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def with_a_space_before(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("model", two_ids_exchanged),
        ("added_tokens", with_one_more_token),
        ("normalizer", in_lower_case),
        ("pre_tokenizer", with_a_space_before),
    ],
)
def test_another_tokenizer_is_refused_with_what_differs(project, tokenizer, part, changed):
    save(project, changed(tokenizer))
    with pytest.raises(ArtefactError, match=f"is not that of `base`: their `{part}` differ"):
        project.run("onnx")


def reading(project, **changes):
    """Checks how the project's member reads texts."""
    member = replace(project.config.members[0], **changes)
    source = source_of(member)
    check_reading(member, source, settings_of_checkpoint(tokenizer_of(source).folder, member))


def amend(path, **more):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **more}))


def test_a_tokenizer_that_reads_as_transformers_does_passes(project):
    reading(project)


def test_special_tokens_of_the_adapters_own_tokenizer_decide_whatever_the_key_says(project, tokenizer):
    special_tokens_round_the_text(tokenizer)
    save(project, tokenizer)
    amend(project.folder / "adapter" / "tokenizer_config.json", **SETTINGS)
    for key in (None, "template"):
        with pytest.raises(ArtefactError, match=r"tokenizer of `adapter` does not: .*`AutoTokenizer` says `<bos> T"):
            reading(project, special_tokens=key)
    reading(project, template=replace(PRESETS["gemma"], add_eos=False))


def test_flags_that_transformers_5_leaves_aside_need_the_key(project):
    amend(project.folder / "base" / "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    with pytest.raises(ArtefactError, match=r"does not: `add_bos_token` and `add_eos_token` in .* says `TEXT <eos>`$"):
        reading(project)
    reading(project, special_tokens="template")


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": "<new>", "special": True}}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<new>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<new>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"new_token": "<new>"}}),
        ("tokenizer_config.json", {"mask_token": "<new>"}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("added_tokens.json", {"<new>": 300}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<new>"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_tokens_that_stand_beside_the_tokenizer_are_refused_by_name(project, tokenizer, where, file, more):
    folder = project.folder / where
    if where == "adapter":
        save(project, tokenizer)
        amend(folder / "tokenizer_config.json", **SETTINGS)
    amend(folder / file, **more)
    with pytest.raises(ArtefactError, match=rf"of `{where}`: of '.*(<new>|<eos>|<bos>|<pad>)"):
        reading(project)


@pytest.mark.parametrize("name", ["GemmaTokenizer", "Qwen2Tokenizer"])
def test_a_class_that_transformers_rebuilds_differently_is_named(project, name):
    amend(project.folder / "base" / "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(ArtefactError, match=f"`{name}") as caught:
        reading(project)
    assert "PreTrainedTokenizerFast" in caught.value.hint


def test_a_tokenizer_that_transformers_cannot_load_is_named(project):
    amend(project.folder / "base" / "tokenizer_config.json", bos_token=3)
    with pytest.raises(ArtefactError, match="Transformers cannot load the tokenizer of `base`"):
        reading(project)


def test_files_that_name_several_ends_are_refused(project):
    amend(project.folder / "base" / "special_tokens_map.json", eos_token="<pad>")
    table = json.loads((project.folder / "base" / "tokenizer_config.json").read_text())
    del table["eos_token"]
    (project.folder / "base" / "tokenizer_config.json").write_text(json.dumps(table))
    with pytest.raises(ArtefactError, match="makes of a text `<bos> TEXT <pad>`"):
        reading(project)
