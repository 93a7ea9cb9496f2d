"""The server's answers are those of the original models, however requests arrive."""

import csv
import json
from pathlib import Path

import numpy as np

from preference_client.scorer import Scorer
from preference_core.battles.battle import battle_from_row

ROOT = Path(__file__).parents[2]
EDGE_BATTLES = [
    battle_from_row(json.loads(line))
    for line in (ROOT / "tests" / "golden" / "edge_battles.jsonl").read_text(encoding="utf-8").splitlines()
]


def largest_difference(server, reference, battles):
    with Scorer(server.urls["grpc"]) as scorer:
        answers = list(scorer.score_many(battles))
    assert len(answers) == len(battles)
    expected = np.stack([reference.probabilities(battle) for battle in battles])
    return np.abs(np.stack([answer.probabilities for answer in answers]) - expected).max()


def test_the_servers_probabilities_are_those_of_transformers(server, reference, battles):
    assert largest_difference(server, reference, battles[:150]) <= 1e-5


def test_edge_battles_have_a_score_and_it_is_that_of_transformers(server, reference):
    assert largest_difference(server, reference, EDGE_BATTLES) <= 1e-5


def test_real_battles_score_as_transformers_scores_them(server, reference, real_battles):
    csv.field_size_limit(2**31 - 1)
    with real_battles.open(encoding="utf-8", newline="") as file:
        battles = [battle_from_row(row) for row in csv.DictReader(file)]
    assert largest_difference(server, reference, battles) <= 1e-5


def test_a_battle_scores_the_same_alone_and_among_others(server, battles):
    with Scorer(server.urls["grpc"], max_in_flight=64) as scorer:
        together = np.stack([answer.probabilities for answer in scorer.score_many(battles[:100] * 2)])
    with Scorer(server.urls["grpc"], max_in_flight=1) as scorer:
        alone = np.stack([answer.probabilities for answer in scorer.score_many(battles[:100])])
    assert np.abs(together[:100] - alone).max() <= 1e-5
    assert np.abs(together[100:] - alone).max() <= 1e-5


def test_the_symmetric_ensemble_does_not_depend_on_the_order_of_the_responses(server, reference, battles):
    some = battles[:40]
    with Scorer(server.urls["grpc"], symmetric=True) as scorer:
        given = np.stack([answer.probabilities for answer in scorer.score_many(some)])
        swapped = np.stack([answer.probabilities for answer in scorer.score_many([b.swapped() for b in some])])
    assert np.abs(given - swapped[:, [1, 0, 2]]).max() <= 1e-6
    rule = reference.combination
    expected = [rule.probabilities(reference.logits(b), reference.logits(b.swapped())) for b in some]
    assert np.abs(given - np.stack(expected)).max() <= 1e-5


def test_weights_sent_with_a_request_replace_the_configured_ones(server, reference, battles):
    with Scorer(server.urls["grpc"], weights={"gemma": 1.0, "llama": 0.0}) as scorer:
        answer = scorer.score(battles[0])
    assert np.abs(answer.probabilities - answer.member_probabilities[0]).max() <= 1e-6
