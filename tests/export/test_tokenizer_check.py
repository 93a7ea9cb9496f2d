"""An adapter that was trained with another tokenizer than its base's is refused; one saved otherwise is not."""

import json

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from preference_core.errors import ArtefactError
from preference_export.checkpoint.source import source_of
from preference_export.checkpoint.tokenizer_check import check_tokenizers


@pytest.fixture
def tokenizer(project):
    """The base's tokenizer, to be changed and saved beside the adapter."""
    return Tokenizer.from_file(str(project.folder / "base" / "tokenizer.json"))


def save(project, tokenizer):
    tokenizer.save(str(project.folder / "adapter" / "tokenizer.json"))


def special_tokens_round_the_text(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)])


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
    with pytest.raises(ArtefactError, match=f"is not that of the base `base`: their `{part}` differ"):
        project.run("onnx")
