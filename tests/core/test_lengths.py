"""Length buckets: which bucket a battle falls into, what it predicts there, and what is refused."""

import json

import numpy as np
import pytest

from preference_core.battles.battle import Battle
from preference_core.battles.encoders import encoder_from_folder
from preference_core.battles.lengths import LENGTHS_FILE, LengthBuckets, LengthEncoder, length_of, write_buckets
from preference_core.ensemble.combination import softmax
from preference_core.errors import ArtefactError, ConfigError
from preference_core.structure import structure

LABELS = ("model_a", "model_b")
BUCKETS = LengthBuckets(LABELS, "characters", (-2.0, 3.0), ((0.2, 0.8), (0.5, 0.5), (0.9, 0.1)))


def battle(a, b):
    return Battle(("why?",), ("x" * a,), ("x" * b,))


def test_a_difference_on_an_edge_belongs_to_the_bucket_above():
    found = [BUCKETS.bucket_of(battle(a, b)) for a, b in ((0, 9), (0, 3), (0, 2), (5, 5), (5, 3), (5, 2), (90, 0))]
    assert found == [0, 0, 1, 1, 1, 2, 2]


def test_one_battle_and_many_predict_the_same():
    differences = np.arange(-5, 6)
    battles = [battle(10 + difference, 10) for difference in differences]
    alone = [BUCKETS.probabilities[BUCKETS.bucket_of(each)] for each in battles]
    assert np.array_equal(BUCKETS.predict(differences), alone)


def test_the_softmax_of_the_logits_is_the_probabilities():
    assert np.abs(softmax(BUCKETS.log_probabilities()) - np.array(BUCKETS.probabilities)).max() < 1e-7


def test_length_counts_joined_turns_in_characters_or_words():
    assert length_of(("ab", "", "cd ef"), "characters") == len("ab  cd ef")
    assert length_of(("ab", "", "cd ef"), "words") == 3


def test_the_encoder_of_a_folder_gives_the_bucket_as_the_one_id(tmp_path):
    write_buckets(tmp_path, BUCKETS)
    encoder = encoder_from_folder(tmp_path)
    assert isinstance(encoder, LengthEncoder)
    encoded = encoder.encode_batch([battle(0, 9), battle(9, 0)])
    assert [tokens.ids.tolist() for tokens in encoded] == [[0], [2]]
    assert {tokens.ids.dtype for tokens in encoded} == {np.dtype(np.int32)}
    assert {tokens.dropped for tokens in encoded} == {(0, 0, 0)}


def test_a_folder_without_any_encoder_is_named(tmp_path):
    with pytest.raises(ArtefactError, match=r"has no tokenizer\.json"):
        encoder_from_folder(tmp_path)


def test_buckets_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / LENGTHS_FILE).write_text('{"labels": ["model_a"]}')
    with pytest.raises(ArtefactError, match=rf"{LENGTHS_FILE}` cannot be read: `unit` is missing"):
        encoder_from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": [3.0, -2.0]}, "do not ascend"),
        ({"edges": [0.0]}, "must have 2 rows of 2 numbers"),
        ({"probabilities": [[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]}, "above 0"),
        ({"probabilities": [[0.2, 0.8], [0.5, 0.5], [float("nan"), 0.5]]}, "above 0"),
        ({"probabilities": [[0.2, 0.8], [0.5], [0.9, 0.1]]}, "must have 3 rows of 2 numbers"),
    ],
)
def test_buckets_without_meaning_are_refused(change, message):
    table = json.loads(json.dumps({key: getattr(BUCKETS, key) for key in BUCKETS.__dataclass_fields__}))
    with pytest.raises(ConfigError, match=message):
        structure(LengthBuckets, {**table, **change})
