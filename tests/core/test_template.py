"""Templates as data: presets that are exact to the space, and one's own from the configuration."""

import pytest

from preference_core.battles.battle import Battle
from preference_core.battles.template import PRESETS, Template, template_of
from preference_core.battles.tokenisation import BattleTokenizer, TokenisationSettings, read_tokenizer
from preference_core.battles.truncation import Truncation
from preference_core.ensemble.settings import Classifier
from preference_core.errors import ConfigError
from preference_core.structure import plain, structure
from preference_training.synthetic.tiny_tokenizer import train_tokenizer

BATTLE = Battle(("P1", "P2"), ("A1", "A2"), ("B1", "B2"))
OWN = {"text": "[{response_b}]{x}\n{prompt} vs {response_a}.", "turn_separator": "|", "add_bos": False, "add_eos": True}


@pytest.mark.parametrize(
    ("name", "text", "special"),
    [
        ("gemma", "<prompt>: P1 P2\n\n<response_a>: A1 A2\n\n<response_b>: B1 B2", (True, True)),
        ("llama", "User prompt: P1 P2\n\nModel A :\nA1 A2\n\n--------\n\nModel B:\nB1 B2", (True, False)),
        ("qwen", "<User prompt>: P1 P2\n\n<response_a>: A1 A2\n\n<response_b>: B1 B2", (False, False)),
    ],
)
def test_a_preset_is_the_published_template_to_the_space(name, text, special):
    preset = template_of(name)
    assert preset.render(BATTLE) == text
    assert (preset.add_bos, preset.add_eos) == special


def test_an_own_template_has_its_fields_in_any_order_and_keeps_other_braces():
    member = structure(Classifier, {"name": "m", "base": "b", "max_tokens": 64, "template": OWN})
    assert template_of(member.template).render(BATTLE) == "[B1|B2]{x}\nP1|P2 vs A1|A2."
    assert structure(Classifier, plain(member)) == member


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "{prompt} {response_a} {respons_b}"}, "has `{response_b}` 0 times, expected once"),
        ({"text": "{prompt} {prompt} {response_a} {response_b}"}, "has `{prompt}` 2 times"),
        ({"add_boss": True}, r"Unknown key `template\.add_boss`"),
        ({"add_eos": 1}, r"`template\.add_eos` is `1`, expected true or false"),
        ({"add_eos": None}, r"`template\.add_eos` is missing"),
    ],
)
def test_a_mistake_in_an_own_template_is_named(change, message):
    table = {key: value for key, value in {**OWN, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        structure(Classifier, {"name": "m", "base": "b", "max_tokens": 64, "template": table})


def test_a_template_is_written_as_toml_reads_it():
    import tomllib

    for template in (*PRESETS.values(), structure(Template, OWN)):
        table = tomllib.loads(f'name = "m"\nbase = "b"\nmax_tokens = 64\ntemplate = {template.toml()}')
        assert template_of(structure(Classifier, table).template) == template


@pytest.mark.parametrize("policy", ["right", "left", "middle", "spread", "longest_first", "turns"])
def test_words_after_the_last_field_are_read_like_all_others(policy, tmp_path):
    train_tokenizer("llama", ["which answer is better, and why? " * 9], 700).save(tmp_path)
    raw = read_tokenizer(tmp_path / "tokenizer.json")
    template = Template("{prompt}\nA: {response_a}\nB: {response_b}\nVerdict:", add_bos=False, add_eos=False)
    long = Battle(("word " * 200,), ("other " * 200,), ("third " * 200,))
    for max_tokens, battles in ((4096, [BATTLE]), (64, [long])):
        tokenizer = BattleTokenizer(raw, TokenisationSettings(template, max_tokens, Truncation(policy)))
        for battle in battles:
            encoded = tokenizer.encode(battle)
            text = raw.decode(encoded.ids.tolist(), skip_special_tokens=False)
            assert len(encoded.ids) <= max_tokens
            assert (sum(encoded.dropped) > 0) == (battle is long)
            assert text.endswith("\nVerdict:") or policy in ("right", "middle", "spread")
