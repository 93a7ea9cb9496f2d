import json
import math
import re

import numpy as np
import pytest

from preference_core.battles.battle import Battle, battle_from_row, battle_from_turns, swapped_label_order
from preference_core.errors import BattleError


def row(prompt, a="x", b="y"):
    return {"prompt": prompt, "response_a": a, "response_b": b}


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ('["one", "two"]', ("one", "two")),
        ('["one", null]', ("one", "")),
        ('["one", NaN]', ("one", "")),
        ("[null]", ("",)),
        ('["a\\/b"]', ("a/b",)),
        ('["\\ud83d\\ude80"]', ("🚀",)),
        ('["a\\",\\"b", "null"]', ('a","b', "null")),
        ('["line\nbreak"]', ("line\nbreak",)),
        (["one", None], ("one", "")),
        (str(["one", "it's", None, "a\n'\xe9\"\\", "[x]"]), ("one", "it's", "", "a\n'\xe9\"\\", "[x]")),
        (str(["it's"]), ("it's",)),
        (str(np.array(["one", None, "th, 'ree"], dtype=object)), ("one", "", "th, 'ree")),
        (str(np.array(["x" * 50, "y" * 50])), ("x" * 50, "y" * 50)),
        ("['one', nan]", ("one", "")),
        (" ['one'] ", ("one",)),
    ],
)
def test_a_list_is_its_turns_whether_json_pandas_or_numpy_wrote_it(value, turns):
    prompt = ("p",) * len(turns)
    assert battle_from_row(row(json.dumps(prompt), value, value)) == Battle(prompt, turns, turns)
    if all(turns):
        assert battle_from_row(row(value, value, value)) == Battle(turns, turns, turns)


@pytest.mark.parametrize(
    "value",
    [
        "plain text",
        "[not json",
        "[INST] Hi",
        "[1, 2]",
        "[Your name]\n[Date]",
        '["a", "b"] sorted?',
        "[" * 100_000,
        "nan or None",
        '{"a": 1}',
        "",
    ],
)
def test_any_other_text_is_one_turn_even_if_it_starts_with_a_bracket(value):
    assert battle_from_row(row(value, "x", value)) == Battle((value,), ("x",), (value,))


def test_plain_texts_that_all_start_with_a_list_are_plain():
    battle = battle_from_row(row('["b", "a"] sorted?', '["a", "b"]', "['a', 'b']: here it is"))
    assert battle.response_a == ('["a", "b"]',)


def test_a_value_that_is_missing_is_an_empty_turn():
    assert battle_from_row(row(None, None, None)) == Battle(("",), ("",), ("",))


@pytest.mark.parametrize(
    ("prompt", "a", "b", "message"),
    [
        ('["p"]', '["a"]', '["b', "`response_b` is not a JSON list of turns, but `prompt` is"),
        ("['p']", "nothing", "['b']", "`response_a` is not a JSON list of turns, but `prompt` is"),
        ("Hi", '["a"]', '["b"]', "`prompt` is not a JSON list of turns, but both responses are"),
        ('["p', '["a"]', '["b"]', "`prompt` is in brackets"),
        ('["p', '["a', '["b', "`prompt` is in brackets"),
        ("[Hi, there]", "[one]", "[two]", "`prompt` is in brackets"),
        ("['p' ... 'q']", "['a' ... 'b']", "", "`prompt` is in brackets"),
        ("[np.str_('p')]", "[np.str_('a')]", "[np.str_('b')]", "`prompt` is in brackets"),
        ("array(['p'], dtype=object)", "array(['a'], dtype=object)", "array(['b'])", "`prompt` is in brackets"),
        ("('p', 'q')", "('a', 'b')", "('c', 'd')", "`prompt` is in brackets"),
        ('{"Hi there",you}', "{one}", "{two}", "`prompt` is in brackets"),
        ('[{"role": "user", "content": "p"}]', '[{"content": "a"}]', '[{"content": "b"}]', "`prompt` is in brackets"),
        ('[["p"]]', '[["a"]]', '[["b"]]', "`prompt` is in brackets"),
        ('["p", 1]', '["a", 2]', '["b", 3]', "`prompt` is in brackets"),
        ('"[\\"p\\"]"', '"[\\"a\\"]"', '"[\\"b\\"]"', "`prompt` is in brackets"),
        ('["[\\"p\\"]"]', '["[\\"a\\"]"]', '["[\\"b\\"]"]', "`prompt` is a list of turns in one text"),
        ('["p", ""]', '["a", ""]', '["b", null]', "`prompt` and both responses are empty in turn 2 of 2"),
        *(("Hi", missing, "b", f"`response_a` is `{missing}`") for missing in ("nan", "NaN", "None", "null", "<NA>")),
        ("None", "a", "b", "`prompt` is `None`"),
    ],
)
def test_a_cell_that_is_not_what_it_seems_is_refused(prompt, a, b, message):
    with pytest.raises(BattleError, match=re.escape(message)) as caught:
        battle_from_row(row(prompt, a, b))
    assert caught.value.hint


def test_a_list_sent_as_one_turn_is_refused_and_one_that_is_meant_passes_beside_plain_text():
    with pytest.raises(BattleError, match="list of turns in one text"):
        battle_from_turns(['["p"]'], ["['a']"], [""])
    assert battle_from_turns(['["p"]'], ["a"], ["['b']"]).prompt == ('["p"]',)
    assert battle_from_row(row('["nan"]', '["None"]', '["[1, 2]"]')) == Battle(("nan",), ("None",), ("[1, 2]",))


def test_the_texts_of_a_row_are_json_all_of_them_or_none():
    assert battle_from_row(row("List two fruits", '["apple", "pear"]', '["fig"]')) == Battle(
        ("List two fruits",), ('["apple", "pear"]',), ('["fig"]',)
    )
    assert battle_from_row(row('["p"]', "", None)) == Battle(("p",), ("",), ("",))


def test_an_empty_list_is_one_empty_turn():
    assert battle_from_row(row("[]", "[]", "[]")) == Battle(("",), ("",), ("",))


@pytest.mark.parametrize("value", [3, math.nan, b"bytes", [1], [b"x"]])
def test_a_value_that_is_no_text_is_an_error_naming_the_field(value):
    with pytest.raises(BattleError, match="`response_a`"):
        battle_from_row(row("p", a=value))


def test_a_missing_column_is_named_with_the_columns_found():
    with pytest.raises(BattleError, match="`response_b` is missing; found 'prompt', 'response_a'"):
        battle_from_row({"prompt": "p", "response_a": "a"})


def test_turn_counts_that_differ_are_an_error_with_both_counts():
    with pytest.raises(BattleError, match="`response_b` has 1 turns, `prompt` has 2"):
        battle_from_turns(["a", "b"], ["a", "b"], ["a"])


@pytest.mark.parametrize("text", ["\ud83d", "ok \udc00 tail", "nul\0"])
def test_text_no_tokenizer_can_read_is_an_error_naming_field_and_position(text):
    with pytest.raises(BattleError, match=r"`response_a` holds .* at character"):
        battle_from_row(row('["p"]', json.dumps([text]), '["b"]'))


def test_unreadable_characters_can_be_replaced_on_request():
    battle = battle_from_row(row('["p"]', json.dumps(["a\ud83db\0"]), '["b"]'), invalid_text="replace")
    assert battle.response_a == ("a\ufffdb\ufffd",)


def test_swapping_exchanges_the_responses_and_nothing_else():
    battle = Battle(("p",), ("a",), ("b",))
    assert battle.swapped() == Battle(("p",), ("b",), ("a",))
    assert battle.swapped().swapped() == battle


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (("winner_model_a", "winner_model_b", "winner_tie"), (1, 0, 2)),
        (("model_b", "model_a"), (1, 0)),
        (("tie", "b", "a"), (0, 2, 1)),
        (("A", "B", "tie"), (1, 0, 2)),
    ],
)
def test_swapped_labels_trade_places_and_the_tie_stays(labels, order):
    assert swapped_label_order(labels) == order


def test_a_label_without_its_counterpart_is_refused():
    with pytest.raises(ValueError, match="winner_model_b"):
        swapped_label_order(("winner_model_a", "tie"))


@pytest.mark.parametrize("labels", [("LABEL_0", "LABEL_1", "LABEL_2"), ("first", "second", "tie"), ("0", "1")])
def test_labels_that_do_not_say_which_trade_places_are_refused(labels):
    with pytest.raises(ValueError, match="none of them says `a` or `b`"):
        swapped_label_order(labels)


@pytest.mark.parametrize(
    ("a", "b", "case"),
    [
        (("x", "y"), ("x", "y"), "identical_responses"),
        (("",), ("",), "identical_responses"),
        (("\n",), ("",), "identical_responses"),
        ((" ", "\n"), ("x", "y"), "empty_response_a"),
        (("x",), ("",), "empty_response_b"),
        (("x", ""), ("", "x"), "ordinary"),
    ],
)
def test_battles_that_need_no_model_are_recognised(a, b, case):
    assert Battle(("p",) * len(a), a, b).special_case() == case
