import json
import math

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
        ("[null]", ("",)),
        ('["a\\/b"]', ("a/b",)),
        ('["\\ud83d\\ude80"]', ("🚀",)),
        ('["a\\",\\"b", "null"]', ('a","b', "null")),
        ('["line\nbreak"]', ("line\nbreak",)),
        (["one", None], ("one", "")),
        ("plain text", ("plain text",)),
        ("[not json", ("[not json",)),
        ("[1, 2]", ("[1, 2]",)),
        ('["a", ["b"]]', ('["a", ["b"]]',)),
        ("[" * 100_000, ("[" * 100_000,)),
        (None, ("",)),
        ("", ("",)),
    ],
)
def test_a_field_is_a_list_of_turns_or_one_turn_of_plain_text(value, turns):
    assert battle_from_row(row(value, value, value)) == Battle(turns, turns, turns)


def test_the_texts_of_a_row_are_json_all_of_them_or_none():
    assert battle_from_row(row("List two fruits", '["apple", "pear"]', '["fig"]')) == Battle(
        ("List two fruits",), ('["apple", "pear"]',), ('["fig"]',)
    )
    assert battle_from_row(row('["p"]', "", None)) == Battle(("p",), ("",), ("",))
    with pytest.raises(BattleError, match="`response_b` is not a JSON list of turns, but `prompt` is"):
        battle_from_row(row('["p"]', '["a"]', '["b'))


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
