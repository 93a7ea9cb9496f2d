"""The length baseline: what it fits, what it refuses, and that it beats the class prior on real battles."""

import json
from pathlib import Path

import numpy as np
import pytest
from battle_files import write_judged
from configurations import classifier_member, configuration, length_buckets_member
from typer.testing import CliRunner

from preference_core.battles.battle import Battle
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import ArtefactError, ConfigError
from preference_training.app import app
from preference_training.battles.baseline import (
    BaselineSettings,
    cross_validated,
    differences_of,
    fit_buckets,
    read_baseline,
)
from preference_training.battles.rows import read_labelled
from preference_training.evaluation.predictions import read_predictions

CONFIG = configuration(classifier_member("gemma"), data={"train": "train.csv"})


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration whose training battles go to the longer response more often than not."""
    monkeypatch.chdir(tmp_path)
    Path("build").mkdir()
    Path("small.toml").write_text(CONFIG)
    random = np.random.default_rng(1)
    battles = []
    for number in range(600):
        a, b = random.integers(1, 200, size=2)
        lead = 1 / (1 + np.exp(-(a - b) / 40))
        battles.append((number, "why?", "a" * a, "b" * b, random.choice(3, p=[0.8 * lead, 0.8 * (1 - lead), 0.2])))
    write_judged("train.csv", battles)
    return Path("small.toml")


def test_the_more_the_first_response_is_longer_the_more_probably_it_wins(config):
    data = read_labelled(Path("train.csv"), LABELS_THREE_WAY)
    buckets = fit_buckets(
        differences_of(data.battles, "characters"), data.targets, LABELS_THREE_WAY, BaselineSettings(buckets=5)
    )
    rows = buckets.predict([-1000, -80, 0, 80, 1000])
    assert np.allclose(rows.sum(axis=1), 1)
    assert (np.diff(rows[:, 0]) >= 0).all()
    assert rows[-1, 0] > 2 * rows[0, 0]


def test_a_bucket_holds_its_shares_and_a_pull_to_the_prior():
    differences, targets = np.repeat([-10.0, 10.0], 30), np.array([0] * 30 + [1] * 30)
    settings = BaselineSettings(buckets=2, smoothing=10)
    buckets = fit_buckets(differences, targets, ("model_a", "model_b"), settings)
    assert buckets.edges == (10.0,)
    assert np.allclose(buckets.predict([-99, 9.9, 10]), [[35 / 40, 5 / 40], [35 / 40, 5 / 40], [5 / 40, 35 / 40]])


def test_equal_lengths_leave_one_bucket_the_class_prior():
    buckets = fit_buckets(np.zeros(300), np.repeat([0, 1, 2], 100), LABELS_THREE_WAY, BaselineSettings())
    assert np.allclose(buckets.probabilities, 1 / 3)


def test_few_battles_get_few_buckets_and_many_get_what_was_asked_for():
    random = np.random.default_rng(2)
    for battles, expected in ((90, 3), (20_000, 250)):
        targets = random.integers(3, size=battles)
        buckets = fit_buckets(random.normal(size=battles), targets, LABELS_THREE_WAY, BaselineSettings())
        assert len(buckets.probabilities) == expected


def test_a_label_that_never_was_seen_is_not_impossible():
    buckets = fit_buckets(np.arange(100), np.zeros(100, dtype=int), LABELS_THREE_WAY, BaselineSettings())
    assert np.min(buckets.probabilities) > 0


def test_differences_are_those_of_the_first_response_from_the_second():
    assert differences_of([Battle(("p",), ("long",), ("s",))], "characters").tolist() == [3]


def test_cross_validation_shows_nothing_where_there_is_nothing_to_learn(config):
    data = read_labelled(Path("train.csv"), LABELS_THREE_WAY)
    np.random.default_rng(5).shuffle(data.targets)
    assert cross_validated(data, LABELS_THREE_WAY, BaselineSettings()).gain.low < 0


def test_the_command_fits_scores_and_does_nothing_the_second_time(config):
    first = CliRunner().invoke(app, ["baseline", str(config), "--json"], catch_exceptions=False)
    score = json.loads(first.stdout)
    assert score["battles"] == 600
    assert score["gain"]["low"] > 0.02
    assert score["log_loss"]["value"] == pytest.approx(score["class_prior"] - score["gain"]["value"])
    second = CliRunner().invoke(app, ["baseline", str(config)], catch_exceptions=False)
    assert "up to date" in second.stderr
    assert f"{score['log_loss']['value']:.4f}" in second.stdout
    buckets = read_baseline(load_config(config))
    assert buckets is not None
    assert buckets.labels == LABELS_THREE_WAY
    assert len(buckets.probabilities) == 20


def test_other_battles_are_cross_validated_on_and_leave_the_fitted_buckets_alone(config):
    head, *rows = Path("train.csv").read_text().splitlines()
    Path("other.csv").write_text("\n".join([head, *rows[:200]]))
    result = CliRunner().invoke(
        app, ["baseline", str(config), "--battles", "other.csv", "--json"], catch_exceptions=False
    )
    assert json.loads(result.stdout)["battles"] == 200
    assert not list(Path("build").iterdir())
    CliRunner().invoke(app, ["baseline", str(config)], catch_exceptions=False)
    fitted = Path("build/small/baseline/length_buckets.json").read_bytes()
    CliRunner().invoke(app, ["baseline", str(config), "--battles", "other.csv"], catch_exceptions=False)
    assert Path("build/small/baseline/length_buckets.json").read_bytes() == fitted


def test_a_changed_or_foreign_artefact_is_refused(config):
    CliRunner().invoke(app, ["baseline", str(config)], catch_exceptions=False)
    path = Path("build/small/baseline/length_buckets.json")
    text = path.read_text()
    path.write_text(text.replace("0.", "1.", 1))
    with pytest.raises(ArtefactError, match=r"length_buckets\.json.* was changed"):
        read_baseline(load_config(config))
    path.write_text(text)
    config.write_text('labels = ["model_a", "model_b"]\n' + CONFIG)
    with pytest.raises(ArtefactError, match="was fitted for the labels"):
        read_baseline(load_config(config))


@pytest.mark.parametrize(
    "wrong", [{"buckets": 0}, {"smoothing": 0.0}, {"smoothing": float("nan")}, {"bucket_battles": 0}]
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BaselineSettings(**wrong)


def test_on_real_battles_it_beats_the_class_prior_by_more_than_noise(real_battles):
    data = read_labelled(real_battles, LABELS_THREE_WAY)
    score = cross_validated(data, LABELS_THREE_WAY, BaselineSettings())
    assert score.battles == 1392
    assert score.gain.low > 0.03
    assert score.log_loss.high < score.class_prior


MEMBER = configuration(
    length_buckets_member("build/small/baseline"),
    training={"baseline": {"buckets": 8}},
    data={"train": "train.csv", "validation": "train.csv"},
)


def test_a_member_of_length_buckets_is_fitted_as_the_configuration_says_and_predicts(config):
    config.write_text(MEMBER)
    fitted = CliRunner().invoke(app, ["fit", str(config)], catch_exceptions=False)
    assert fitted.exit_code == 0, fitted.stderr
    buckets = read_baseline(load_config(config))
    assert buckets is not None
    assert len(buckets.probabilities) == 8
    again = CliRunner().invoke(app, ["baseline", str(config)], catch_exceptions=False)
    assert "up to date" in again.stderr
    predicted = CliRunner().invoke(app, ["predict", str(config)], catch_exceptions=False)
    assert predicted.exit_code == 0, predicted.stderr
    data = read_labelled(Path("train.csv"), LABELS_THREE_WAY)
    expected = buckets.predict(differences_of(data.battles, "characters"))
    read = read_predictions(Path("build/small/validation_predictions.csv"), load_config(config))
    assert read.ids == data.ids
    assert np.abs(read.ensemble - expected).max() < 1e-6
    assert set(read.dropped["length"].tolist()) == {0}


def test_a_member_whose_buckets_come_from_elsewhere_needs_them_to_be_there(config):
    config.write_text(MEMBER.replace("build/small/baseline", "elsewhere"))
    with pytest.raises(ArtefactError, match=r"`elsewhere` has no length_buckets\.json"):
        CliRunner().invoke(app, ["fit", str(config)], catch_exceptions=False)
