import numpy as np
import pytest

from preference_core.ensemble.combination import Combination, PostProcessing, normalised_weights
from preference_core.errors import CombinationError, NonFiniteLogitsError

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def combination(**changes):
    return Combination(**{"labels": LABELS, "members": ("gemma", "llama"), "weights": (1.0, 3.0)} | changes)


def logits_of(*probabilities):
    return np.log(np.array(probabilities))


def test_probabilities_are_averaged_with_normalised_weights():
    logits = logits_of([0.8, 0.1, 0.1], [0.4, 0.5, 0.1])
    assert combination().probabilities(logits) == pytest.approx([0.5, 0.4, 0.1])


def test_logits_are_averaged_on_request():
    logits = logits_of([0.8, 0.1, 0.1], [0.4, 0.5, 0.1])
    expected = np.array([0.8**0.25 * 0.4**0.75, 0.1**0.25 * 0.5**0.75, 0.1])
    result = combination(average="logits").probabilities(logits)
    assert result == pytest.approx(expected / expected.sum())


def test_weights_of_a_request_replace_the_configured_ones():
    logits = logits_of([0.8, 0.1, 0.1], [0.4, 0.5, 0.1])
    assert combination().probabilities(logits, weights=[2, 0]) == pytest.approx([0.8, 0.1, 0.1])


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [-1, 2], [0, 0], [np.nan, 1], [np.inf, 1], [[1, 2]]], ids=str)
def test_unusable_weights_are_refused(weights):
    with pytest.raises(CombinationError, match="weights are"):
        normalised_weights(weights, 2)
    with pytest.raises(CombinationError):
        combination().probabilities(np.zeros((2, 3)), weights=weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_naming_the_member(bad):
    logits = np.zeros((4, 2, 3))
    logits[2, 1, 0] = bad
    with pytest.raises(NonFiniteLogitsError, match="`llama`"):
        combination(weights=(1.0, 0.0)).probabilities(logits)


def test_swapped_logits_are_averaged_in_the_original_label_order():
    original = logits_of([0.6, 0.3, 0.1], [0.6, 0.3, 0.1])
    exchanged = logits_of([0.1, 0.8, 0.1], [0.1, 0.8, 0.1])
    rule = combination()
    assert rule.probabilities(original, exchanged) == pytest.approx([0.7, 0.2, 0.1])
    assert rule.member_probabilities(original, exchanged)[0] == pytest.approx([0.7, 0.2, 0.1])


def test_a_symmetric_prediction_does_not_depend_on_the_order_of_the_responses():
    generator = np.random.default_rng(0)
    ab, ba = generator.normal(size=(2, 50, 2, 3))
    rule = combination(average="logits")
    assert rule.probabilities(ab, ba)[:, [1, 0, 2]] == pytest.approx(rule.probabilities(ba, ab))


def test_temperature_flattens_its_own_member_only():
    logits = logits_of([0.8, 0.1, 0.1], [0.8, 0.1, 0.1])
    first, second = combination(temperatures=(2.0, 1.0)).member_probabilities(logits)
    assert first[0] < 0.8
    assert second == pytest.approx([0.8, 0.1, 0.1])


def test_post_processing_multiplies_strictly_above_the_threshold_and_renormalises():
    rule = PostProcessing(0.75, {"winner_model_a": 1.125, "winner_model_b": 1.125, "winner_tie": 1.325})
    rows = np.array([[0.8, 0.1, 0.1], [0.75, 0.15, 0.1], [0.05, 0.05, 0.9]])
    result = rule.apply(rows, LABELS)
    assert result.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert result[0] == pytest.approx(np.array([0.9, 0.1, 0.1]) / 1.1)
    assert result[1] == pytest.approx(rows[1])
    assert result[2] == pytest.approx(np.array([0.05, 0.05, 1.1925]) / 1.2925)


def test_every_row_sums_to_one_whatever_the_rule():
    generator = np.random.default_rng(1)
    rule = combination(post_processing=PostProcessing(0.4, dict.fromkeys(LABELS, 1.7)))
    result = rule.probabilities(generator.normal(scale=30, size=(1000, 2, 3)))
    assert result.sum(axis=1) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("only",)},
        {"labels": ("tie", "tie")},
        {"labels": ("winner_model_a", "tie")},
        {"temperatures": (0.0, 1.0)},
        {"temperatures": (1.0,)},
        {"post_processing": PostProcessing(0.5, {"winner_model_c": 2.0})},
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused_when_it_is_made(changes):
    with pytest.raises(CombinationError):
        combination(**changes)


def test_a_special_case_has_the_configured_answer_and_others_have_none():
    answer = {"winner_model_a": 0.06, "winner_model_b": 0.06, "winner_tie": 0.88}
    rule = combination(fixed={"identical_responses": answer})
    assert rule.fixed_probabilities("identical_responses").tolist() == [0.06, 0.06, 0.88]
    assert rule.fixed_probabilities("ordinary") is None


@pytest.mark.parametrize(
    "fixed",
    [
        {"identical": dict.fromkeys(LABELS, 1 / 3)},
        {"ordinary": dict.fromkeys(LABELS, 1 / 3)},
        {"identical_responses": {"winner_tie": 0.9}},
        {"identical_responses": {"winner_tie": 2.0, "winner_model_a": -1.0}},
        {"identical_responses": {"tie": 1.0}},
    ],
    ids=str,
)
def test_fixed_answers_that_are_no_probabilities_are_refused(fixed):
    with pytest.raises(CombinationError, match="fixed"):
        combination(fixed=fixed)
