import numpy as np
import pytest

from preference_core.ensemble import metrics
from preference_core.errors import UserError

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")


def test_log_loss_of_the_uniform_prediction_is_the_log_of_the_labels():
    assert metrics.log_loss(np.full((7, 3), 1 / 3), [0, 1, 2, 0, 1, 2, 0]) == pytest.approx(np.log(3))


def test_log_loss_accuracy_and_prior_of_known_rows():
    probabilities = [[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]]
    assert metrics.log_loss(probabilities, [0, 1, 2]) == pytest.approx(-np.log([0.5, 0.8, 0.1]).mean())
    assert metrics.accuracy(probabilities, [0, 1, 2]) == pytest.approx(2 / 3)
    assert metrics.class_prior_log_loss([0, 0, 1, 2], 3) == pytest.approx(-(2 * np.log(0.5) + 2 * np.log(0.25)) / 4)


def test_a_certain_wrong_prediction_costs_much_but_not_infinitely():
    assert 30 < metrics.log_loss([[1.0, 0.0]], [1]) < 40


def test_swap_consistency_of_equal_predictions_is_perfect():
    rows = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    assert metrics.swap_consistency(rows, rows) == {"same_decision": 1, "mean_difference": 0, "max_difference": 0}
    assert metrics.swap_consistency(rows, rows[:, ::-1])["same_decision"] == 0.5


def test_predictions_meet_labels_by_id_never_by_position():
    joined = metrics.joined_by_id({"2": "b", "1": "a"}, {"1": 10, "2": 20})
    assert joined == [("1", "a", 10), ("2", "b", 20)]
    with pytest.raises(UserError, match="1 labelled ids have no prediction \\(such as `2`\\), 1 predictions"):
        metrics.joined_by_id({"1": "a", "3": "c"}, {"1": 10, "2": 20})


def test_a_row_carries_its_label_one_hot_or_by_name():
    assert metrics.target_of_row({"winner_model_a": "0", "winner_model_b": "0", "winner_tie": "1"}, LABELS) == 2
    assert metrics.target_of_row({"winner": "model_b"}, LABELS) == 1
    assert metrics.target_of_row({"winner": "model_b"}, ("model_a", "model_b")) == 1
    for row in ({"winner_model_a": "1", "winner_model_b": "1", "winner_tie": "0"}, {"winner": "nobody"}, {}):
        with pytest.raises(UserError):
            metrics.target_of_row(row, LABELS)


@pytest.mark.parametrize(
    ("row", "message", "hint"),
    [
        ({"winner": "tie"}, "`winner` is `tie`, expected model_a or model_b", "A binary ensemble has no tie"),
        ({"winner": "nobody"}, "`winner` is `nobody`, expected model_a or model_b", None),
        (
            {"winner_model_a": "0", "winner_model_b": "0", "winner_tie": "1"},
            "to be 1: `winner_model_a` is `0`, `winner_model_b` is `0`",
            "A binary ensemble has no tie",
        ),
        ({"winner_model_a": "0", "winner_model_b": "0"}, "to be 1: `winner_model_a` is `0`", None),
        ({}, "The row has no label", None),
    ],
    ids=["tie", "nobody", "one-hot tie", "no label", "no column"],
)
def test_a_label_that_cannot_be_is_shown(row, message, hint):
    with pytest.raises(UserError) as caught:
        metrics.target_of_row(row, LABELS[:2])
    assert message in caught.value.message
    assert (caught.value.hint or "").partition(":")[0] == (hint or "")


def test_predictions_that_are_not_finite_or_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="finite"):
        metrics.log_loss([[np.nan, 1.0]], [0])
    with pytest.raises(ValueError, match="expected"):
        metrics.log_loss([[0.5, 0.5]], [0, 1])
