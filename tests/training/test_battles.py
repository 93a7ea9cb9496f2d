"""Generated battles: they look like the published data, and who wins can be learned."""

import json
from collections import Counter
from statistics import quantiles

import numpy as np
import pytest

from preference_core.battles.battle import battle_from_row
from preference_core.ensemble.metrics import class_prior_log_loss
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.files.rows import read_rows
from preference_core.tensors import FIELDS
from preference_training.battles.rows import read_labelled
from preference_training.synthetic.battles import EDGE_CASE_EVERY, EDGE_CASES, MOST_TURNS, generate, lowest_log_loss
from preference_training.synthetic.write import COLUMNS, write_battles


@pytest.fixture(scope="module")
def many():
    return list(generate(6000, 42, "train"))


@pytest.fixture(scope="module")
def file(many, tmp_path_factory):
    path = tmp_path_factory.mktemp("battles") / "train.csv"
    write_battles(path, many)
    return path


def test_the_same_seed_gives_the_same_battles_and_more_of_them_only_append():
    assert list(generate(40, 1, "train")) == list(generate(60, 1, "train"))[:40]


def test_another_seed_or_split_gives_other_battles():
    first, second, third = (next(generate(1, seed, split)) for seed, split in ((1, "train"), (2, "train"), (1, "test")))
    assert len({first.response_a, second.response_a, third.response_a}) == 3
    assert len({first.id, second.id, third.id}) == 3


def test_labels_are_shared_as_in_the_published_data(many):
    count = Counter(battle.label for battle in many)
    shares = [count[label] / len(many) for label in range(3)]
    assert shares == pytest.approx([0.349, 0.342, 0.309], abs=0.02)


def test_most_battles_have_one_turn_and_some_have_many(many):
    turns = Counter(len(battle.prompt) for battle in many if battle.prompt)
    assert turns[1] / len(many) == pytest.approx(0.87, abs=0.02)
    assert 8 < max(turns) <= MOST_TURNS


def test_lengths_are_spread_like_a_log_normal(many):
    lengths = [sum(len(turn or "") for field in FIELDS for turn in getattr(battle, field)) for battle in many]
    percentiles = quantiles(lengths, n=100)
    median, p90, p99 = percentiles[49], percentiles[89], percentiles[98]
    assert 2 < p90 / median < 3.2
    assert 5 < p99 / median < 10


def test_ids_never_repeat_and_exceed_32_bits(many):
    ids = {battle.id for battle in many}
    assert len(ids) == len(many)
    assert sum(identity > 2**31 for identity in ids) > 0.9 * len(many)


def test_the_preference_can_be_learned_but_not_perfectly(many):
    targets = [battle.label for battle in many]
    assert 0.3 < lowest_log_loss(many) < class_prior_log_loss(targets, 3) - 0.3


def test_the_better_answer_wins_and_the_longer_one_more_often(many):
    decided = [battle for battle in many if battle.label != 2]
    better = [(battle.worth_a > battle.worth_b) == (battle.label == 0) for battle in decided]
    assert np.mean(better) > 0.9
    longer = [
        (sum(map(len, battle.response_a)) > sum(map(len, battle.response_b))) == (battle.label == 0)
        for battle in decided
        if None not in battle.response_b
    ]
    assert np.mean(longer) > 0.6


def test_a_file_of_some_hundred_rows_holds_every_edge_case():
    battles = list(generate(EDGE_CASE_EVERY * len(EDGE_CASES), 42, "validation"))
    texts = [json.dumps(battle.prompt + battle.response_a + battle.response_b) for battle in battles]
    assert any(None in battle.response_b for battle in battles)
    assert any(battle.prompt == () for battle in battles)
    assert any("" in battle.response_a for battle in battles)
    assert any(battle.response_a == battle.response_b != () for battle in battles)
    assert any("\\ud83" in text or "\\u2764" in text for text in texts)
    assert any(token in text for text in texts for token in ("<|", "<eos>", "<bos>", "<pad>", "</s>"))


def test_the_file_spells_turns_as_the_published_ones_do(file):
    rows = list(read_rows(file))
    assert tuple(rows[0]) == COLUMNS
    raw = "".join(row[field] for row in rows for field in FIELDS)
    assert raw.isascii()
    assert "\\ud83c\\udf31" in raw  # an emoji, as a pair of escaped surrogates
    assert "\\/" in raw
    assert "and broken" in raw
    assert any(row["response_b"].startswith("[null") for row in rows)
    assert any(row["prompt"] == "[]" for row in rows)
    assert any('\\",\\"' in row["prompt"] for row in rows)
    assert {row[label] for row in rows for label in LABELS_THREE_WAY} == {"0", "1"}


def test_every_row_can_be_read_and_says_what_was_generated(many, file):
    for battle, row in zip(many, read_rows(file), strict=True):
        read = battle_from_row(row)
        assert read.prompt == (tuple(turn or "" for turn in battle.prompt) or ("",))
        assert read.response_b == (tuple(turn or "" for turn in battle.response_b) or ("",))
    labelled = read_labelled(file, LABELS_THREE_WAY)
    assert labelled.ids == tuple(str(battle.id) for battle in many)
    assert labelled.targets.tolist() == [battle.label for battle in many]


def test_many_scripts_and_code_occur(many):
    text = " ".join(turn or "" for battle in many for turn in battle.response_a)
    for sign in ("ß", "é", "и", "的", "の", "ف", "क", "요", "```python"):
        assert sign in text, sign
