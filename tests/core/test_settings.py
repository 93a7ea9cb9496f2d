import tomllib
from pathlib import Path

import pytest

from preference_core.ensemble.loading import load_config, read_config_file
from preference_core.ensemble.settings import Classifier, Config, LengthBaseline
from preference_core.errors import OTHER_NAMES, ConfigError, nearest
from preference_core.structure import plain, structure

MINIMAL = """
name = "tiny"

[[member]]
name = "gemma"
base = "bases/gemma"
template = "gemma"
max_tokens = 128

[[member]]
name = "llama"
base = "bases/llama"
template = "llama"
max_tokens = 128
"""


@pytest.fixture
def load(tmp_path):
    def load_text(text):
        path = tmp_path / "ensemble.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return load_text


def test_a_minimal_config_has_safe_defaults(load):
    config = load(MINIMAL)
    assert config.labels == ("winner_model_a", "winner_model_b", "winner_tie")
    assert config.members[0].truncation.policy == "right"
    assert config.combination.weights == (1.0, 1.0)
    assert config.folders.repository.as_posix() == "build/tiny/repository"


def test_a_config_survives_the_way_to_plain_values_and_back(load):
    config = load(MINIMAL + "[combine]\nweights = { gemma = 0.25, llama = 0.75 }\n")
    assert structure(Config, plain(config)) == config


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (("max_tokens = 128", "max_token = 128"), "`member[0].max_token`", "`max_tokens`"),
        (
            ("max_tokens = 128", 'max_tokens = "128"'),
            "`member[0].max_tokens` is `'128'`, expected a whole number",
            None,
        ),
        (("max_tokens = 128", "max_tokens = true"), "expected a whole number", None),
        (("max_tokens = 128", "max_tokens = 0"), "`max_tokens` is 0, expected at least 16", None),
        (('template = "gemma"', 'template = "gema"'), "`gema`", "`gemma`"),
        (('base = "bases/gemma"', ""), "`member[0].base` is missing", None),
        (('name = "gemma"', 'name = "combine"'), "`combine`", "none of"),
        (('name = "llama"', 'name = "gemma"'), "Two members are called `gemma`", None),
        (('name = "tiny"', 'name = "tiny"\nlabel = []'), "`label`", "`labels`"),
        (('name = "tiny"', 'name = "tiny"\nlabels = ["winner_model_a"]'), "at least two", None),
        (('name = "tiny"', 'name = "tiny"\nlabels = ["a, b", "c"]'), "`labels` has 'a, b'", "comma"),
        (('name = "tiny"', 'name = "tiny"\nlabels = ["a", ""]'), "`labels` has ''", "empty"),
        (('name = "tiny"', 'name = "tiny"\nlabels = ["a", " b"]'), "`labels` has ' b'", "space"),
        (('base = "bases/gemma"', 'base = "b"\ngpus = [-1]'), "`gpus` is -1, expected at least 0", None),
        (('base = "bases/gemma"', 'base = "b"\ngpus = [0, 1, 0]'), "[0, 1, 0], which names one twice", "`instances`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named_with_the_nearest_known_key(load, change, message, hint):
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL.replace(*change, 1))
    assert message in caught.value.message
    assert "ensemble.toml" in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        ("weights = { gemma = 1.0 }", "leave out the member `llama`"),
        ("weights = { gemma = 1.0, lama = 1.0 }", "unknown member `lama`"),
        ("weights = { gemma = -1.0, llama = 1.0 }", "not negative"),
        ("weights = { gemma = 0, llama = 0 }", "above zero"),
        ("weights = { gemma = nan, llama = 1 }", "finite"),
        ("temperatures = { gemma = 0.0 }", "positive"),
        ("post_processing = { threshold = 2.0, multipliers = {} }", "0 to 1"),
        ("post_processing = { threshold = 0.5, multipliers = { tie = 1.2 } }", "unknown label `tie`"),
    ],
)
def test_weights_that_cannot_work_stop_the_start(load, combine, message):
    with pytest.raises(ConfigError) as caught:
        load(f"{MINIMAL}[combine]\n{combine}\n")
    assert message in caught.value.message


def test_weights_may_come_from_a_file_beside_the_config(load, tmp_path):
    (tmp_path / "weights.toml").write_text("weights = { gemma = 1, llama = 3 }\n", encoding="utf-8")
    config = load(f'{MINIMAL}[combine]\ninclude = "weights.toml"\n')
    assert config.combine.weights == {"gemma": 1.0, "llama": 3.0}
    with pytest.raises(ConfigError, match="given here and in"):
        load(f'{MINIMAL}[combine]\ninclude = "weights.toml"\nweights = {{ gemma = 1, llama = 1 }}\n')


def test_what_runs_before_the_weights_may_do_without_their_file(load, tmp_path):
    path = tmp_path / "early.toml"
    path.write_text(MINIMAL + '[combine]\ninclude = "weights.toml"\n', encoding="utf-8")
    assert read_config_file(path).included == tmp_path / "weights.toml"
    assert load_config(path, include_may_be_missing=True).combine.weights == {}
    with pytest.raises(ConfigError, match="There is no file"):
        load_config(path)


def test_a_configuration_file_and_the_one_it_includes_are_parsed_once_each(load, tmp_path, monkeypatch):
    parsed = []
    monkeypatch.setattr(tomllib, "loads", lambda text, loads=tomllib.loads: parsed.append(text) or loads(text))
    weights, path = "weights = { gemma = 1, llama = 2 }", tmp_path / "both.toml"
    (tmp_path / "weights.toml").write_text(weights, encoding="utf-8")
    path.write_text(f'{MINIMAL}[combine]\ninclude = "weights.toml"\naverage = "logits"\n', encoding="utf-8")
    file = read_config_file(path)
    assert file.included == tmp_path / "weights.toml"
    assert file.own_keys == {"average"}
    assert file.config().combination.weights == (1.0, 2.0)
    assert parsed == [path.read_text(encoding="utf-8"), weights]


def test_a_missing_file_and_broken_toml_are_named(load, tmp_path):
    with pytest.raises(ConfigError, match="There is no file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load("name = ")


def test_budgets_only_make_sense_for_policies_that_have_them():
    table = {"name": "m", "base": "b", "template": "gemma", "max_tokens": 128}
    with pytest.raises(ConfigError, match="`prompt_tokens` has no meaning for the policy `right`"):
        structure(Classifier, table | {"truncation": {"policy": "right", "prompt_tokens": 10}})


@pytest.mark.parametrize(
    ("line", "adapters"),
    [("", ()), ('adapter = "one"', ("one",)), ('adapter = ["one", "two"]', ("one", "two"))],
)
def test_a_member_has_no_adapter_or_one_or_several(load, line, adapters):
    config = load(MINIMAL.replace('template = "gemma"', f'template = "gemma"\n{line}'))
    assert config.members[0].adapters == adapters
    assert structure(Config, plain(config)) == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adapter = []", "`adapter` is an empty list"),
        ("adapter = 3", "adapter` is `3`, expected text"),
        ("adapter = [3]", r"adapter\[0\]` is `3`, expected text"),
        ('base_rounding = "fp4"', "base_rounding` is `'fp4'`"),
    ],
)
def test_an_adapter_or_a_rounding_that_means_nothing_is_refused(load, line, message):
    with pytest.raises(ConfigError, match=message):
        load(MINIMAL.replace('template = "gemma"', f'template = "gemma"\n{line}'))


def test_every_adapter_may_have_a_revision_of_its_own(load):
    text = MINIMAL.replace('base = "bases/gemma"', 'base = "bases/gemma"\nadapter = ["a/one", "folds/two"]{}', 1)
    for line, revisions in (("", [None, None]), ('"abc"', ["abc", "abc"]), ('["abc", ""]', ["abc", None])):
        member = load(text.format(f"\nadapter_revision = {line}" if line else "")).members[0]
        assert [location.revision for location in member.adapter_locations] == revisions
    with pytest.raises(ConfigError, match="`adapter_revision` has 1 entries, `adapter` has 2"):
        load(text.format('\nadapter_revision = ["abc"]'))


LENGTH = """
name = "tiny"

[[member]]
name = "length"
kind = "length_buckets"
base = "build/tiny/baseline"
"""


def test_a_member_of_length_buckets_needs_nothing_but_its_folder(load):
    config = load(LENGTH)
    assert isinstance(config.members[0], LengthBaseline)
    assert structure(Config, plain(config)) == config


@pytest.mark.parametrize(
    "line",
    [
        'template = "gemma"',
        "max_tokens = 64",
        'adapter = "a"',
        'precision = "fp16"',
        'engine = "tensorrt"',
        "gpus = [0]",
    ],
)
def test_what_has_no_meaning_for_length_buckets_is_refused(load, line):
    with pytest.raises(ConfigError, match=f"{line.partition(' ')[0]}` has no meaning for the kind `length_buckets`"):
        load(LENGTH + line)


@pytest.mark.parametrize(("line", "key"), [('template = "gemma"', "template"), ("max_tokens = 128", "max_tokens")])
def test_a_classifier_needs_a_template_and_a_number_of_tokens(load, line, key):
    with pytest.raises(ConfigError, match=rf"`member\[0\]\.{key}` is missing"):
        load(MINIMAL.replace(line, ""))


@pytest.mark.parametrize("kind", ['"length_bucket"', "[1]"])
def test_an_unknown_kind_of_member_is_refused(load, kind):
    with pytest.raises(ConfigError, match=r"`member\[0\]\.kind` is "):
        load(LENGTH.replace('"length_buckets"', kind))


def test_an_included_file_that_is_missing_is_named_with_what_writes_it(load):
    with pytest.raises(ConfigError, match=r"which `combine\.include` names") as caught:
        load(f'{MINIMAL}[combine]\ninclude = "weights.toml"\n')
    assert "preference-train weights" in str(caught.value.hint)


def test_a_byte_order_mark_before_the_configuration_is_no_part_of_it(load):
    assert load("\ufeff" + MINIMAL).name == "tiny"


@pytest.mark.parametrize(
    ("other", "meant"),
    [("lr", "learning_rate"), ("r", "rank"), ("num_train_epochs", "epochs"), ("max_length", "max_tokens")],
)
def test_what_other_projects_call_a_key_is_understood(other, meant):
    known = ["learning_rate", "rank", "max_tokens", "epochs", "max_gradient_norm"]
    assert nearest(other, known) == f"Did you mean `{meant}`?"


def test_every_key_that_other_projects_call_otherwise_is_one_of_a_configuration():
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [key for key in OTHER_NAMES if f"| `{key}` |" not in page] == []
