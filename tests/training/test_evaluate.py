"""What `preference-train evaluate` measures, from files made by hand."""

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from battle_files import write_csv, write_predictions
from configurations import classifier_member, configuration
from rich.console import Console
from typer.testing import CliRunner

from preference_core.ensemble import metrics
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import UserError
from preference_training.app import app
from preference_training.battles.baseline import BaselineSettings, cross_validated, differences_of, read_baseline
from preference_training.battles.rows import read_labelled
from preference_training.evaluation.evaluate import evaluate
from preference_training.statistics.calibration_error import calibration_estimate
from preference_training.statistics.intervals import Bootstrap
from preference_training.terminal import progress_bars

CONFIG = configuration(
    classifier_member("gemma"), classifier_member("llama"), data={"train": "test.csv", "test": "test.csv"}
)
BATTLES = 240


def judge(seed):
    """Probabilities of an imagined model, `[battles, 3]`."""
    return np.random.default_rng(seed).dirichlet([2, 2, 1], size=BATTLES)


@pytest.fixture
def targets(tmp_path, monkeypatch):
    """A working directory with battles of several lengths, turns and languages, and predictions of two members."""
    monkeypatch.chdir(tmp_path)
    Path("build/small").mkdir(parents=True)
    Path("small.toml").write_text(CONFIG)
    generator = np.random.default_rng(1)
    targets = generator.integers(3, size=BATTLES)
    rows = []
    for number, target in enumerate(targets):
        turns = 1 + number % 6
        texts = [json.dumps(["x" * int(generator.integers(1, 90))] * turns) for _ in range(3)]
        language = ("English", "Polish", "<b>Klingon</b>")[number % 3]
        rows.append([number, *texts, *(int(target == label) for label in range(3)), language])
    write_csv("test.csv", ["id", "prompt", "response_a", "response_b", *LABELS_THREE_WAY, "language"], rows)
    write_predictions(
        "build/small/predictions.csv", {"gemma": judge(1), "llama": judge(2)}, dropped=np.arange(BATTLES) % 4
    )
    return targets


def measured(**options):
    config = load_config("small.toml")
    return evaluate(config, Path("build/small/predictions.csv"), Path("test.csv"), **options)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_scores_are_those_of_the_metrics_and_lie_in_their_intervals(targets):
    scores = {score.name: score for score in measured().scores}
    assert list(scores) == ["gemma", "llama", "ensemble", "class prior", "uniform"]
    mean = (judge(1) + judge(2)) / 2
    assert scores["ensemble"].log_loss.value == pytest.approx(metrics.log_loss(mean, targets))
    assert scores["ensemble"].accuracy.value == pytest.approx(metrics.accuracy(mean, targets))
    calibration = calibration_estimate(mean, targets, Bootstrap().of(BATTLES))
    assert scores["ensemble"].calibration_error == calibration
    assert scores["class prior"].log_loss.value == pytest.approx(metrics.class_prior_log_loss(targets, 3))
    assert scores["uniform"].log_loss.value == pytest.approx(np.log(3))
    assert scores["gemma"].dropped_tokens == sum(number % 4 for number in range(BATTLES))
    for score in scores.values():
        assert score.log_loss.low <= score.log_loss.value + 1e-12
        assert score.log_loss.value <= score.log_loss.high + 1e-12


def test_the_order_of_the_predictions_changes_nothing(targets):
    before = measured()
    path = Path("build/small/predictions.csv")
    header, *rows = path.read_text().splitlines(keepends=True)
    random.Random(1).shuffle(rows)
    path.write_text("".join([header, *rows]))
    assert measured() == before


def test_predictions_of_other_battles_are_refused(targets):
    path = Path("build/small/predictions.csv")
    path.write_text(path.read_text().replace("\n17,", "\n1017,"))
    with pytest.raises(UserError, match=r"`17`.*`1017`"):
        measured()


def test_groups_divide_the_battles_and_the_confusion_counts_them_all(targets):
    result = measured()
    assert sorted(result.groups) == ["language", "length", "turns"]
    for groups in result.groups.values():
        assert sum(group.battles for group in groups) == BATTLES
    assert [group.name for group in result.groups["turns"]] == ["1 turn", "2 turns", "3 to 4 turns", "5 to 8 turns"]
    assert {group.name for group in result.groups["language"]} == {"English", "Polish", "<b>Klingon</b>"}
    assert np.sum(result.confusion) == BATTLES
    assert np.sum(result.confusion, axis=1).tolist() == np.bincount(targets).tolist()


def test_a_gain_is_how_far_a_source_is_below_the_class_prior_on_the_same_battles(targets):
    honest = np.full((BATTLES, 3), 0.2)
    honest[np.arange(BATTLES), targets] = 0.6
    write_predictions("build/small/predictions.csv", {"gemma": honest, "llama": judge(2)})
    scores = {score.name: score for score in measured().scores}
    prior = metrics.class_prior_log_loss(targets, 3)
    for name in ("gemma", "llama", "ensemble"):
        gain = scores[name].gain
        assert gain.value == pytest.approx(prior - scores[name].log_loss.value)
        assert gain.low < gain.value < gain.high
    assert scores["gemma"].gain.low > 0.5
    assert scores["llama"].gain.high < 0
    assert scores["class prior"].gain is None
    assert scores["uniform"].gain is None


def test_only_the_uniform_guess_is_exact(targets):
    certain = np.eye(3)[targets] * 0.97 + 0.01
    write_predictions("build/small/predictions.csv", {"gemma": certain})
    result = measured()
    assert [score.name for score in result.scores if score.log_loss.is_exact] == ["uniform"]
    ensemble = next(score for score in result.scores if score.name == "ensemble")
    assert (ensemble.accuracy.value, ensemble.accuracy.low, ensemble.accuracy.high) == (
        1,
        pytest.approx(0.984, abs=1e-3),
        1,
    )
    assert (ensemble.log_loss.low, ensemble.log_loss.high) == (None, None)
    shown = " ".join(run("evaluate", "small.toml").stdout.split())
    assert f"{ensemble.log_loss.value:.4f} n/a" in shown
    assert "0.984 to 1.000" in shown
    assert "uniform │ 1.0986 │" in shown


def test_one_battle_has_no_interval_and_the_table_says_why(targets):
    lines = Path("test.csv").read_text().splitlines(keepends=True)
    Path("test.csv").write_text("".join(lines[:2]).replace(",English", ",French"))
    lines = Path("build/small/predictions.csv").read_text().splitlines(keepends=True)
    Path("build/small/predictions.csv").write_text("".join(lines[:2]))
    (group,) = measured().groups["language"]
    assert (group.log_loss.low, group.log_loss.high) == (None, None)
    loss = metrics.log_loss((judge(1)[:1] + judge(2)[:1]) / 2, targets[:1])
    shown = run("evaluate", "small.toml").stdout
    assert f"{loss:.4f} n/a" in shown
    assert "n/a: fewer than 10 battles" in shown
    run("evaluate", "small.toml", "--json")


def test_shares_of_the_confusion_matrix_have_intervals(targets):
    result = measured()
    decisions = ((judge(1) + judge(2)) / 2).argmax(axis=1)
    for row, shares in enumerate(result.confusion_shares):
        of_row = targets == row
        for column, share in enumerate(shares):
            assert share.value == pytest.approx((decisions[of_row] == column).mean())
            width = 2 * 1.96 * np.sqrt(share.value * (1 - share.value) / of_row.sum())
            assert share.high - share.low == pytest.approx(width, rel=0.2)
    first = result.confusion_shares[0][0]
    shown = f"{first.value:.0%} ({100 * first.low:.0f}-{100 * first.high:.0f})"
    line = next(line for line in run("evaluate", "small.toml").stdout.splitlines() if shown in line)
    assert line.startswith("│ A wins")


def test_a_label_that_no_battle_has_has_no_shares(targets):
    rows = Path("test.csv").read_text().replace(",0,0,1,", ",1,0,0,")
    Path("test.csv").write_text(rows)
    assert measured().confusion_shares[2] == (None, None, None)
    run("evaluate", "small.toml", "--json")


def test_scores_on_the_battles_that_were_trained_on_come_with_a_warning(targets):
    assert "holds the battles that were trained on" in run("evaluate", "small.toml").stderr
    Path("train.csv").write_text(Path("test.csv").read_text().replace("why?", "how?"))
    Path("small.toml").write_text(CONFIG.replace('train = "test.csv"', 'train = "train.csv"'))
    assert "trained on" not in run("evaluate", "small.toml").stderr


def test_no_table_is_wider_than_80_columns_or_breaks_a_number(targets):
    run("baseline", "small.toml")
    write_predictions("symmetric.csv", {"gemma": judge(1), "llama": judge(2)})
    shown = run("evaluate", "small.toml", "--symmetric", "symmetric.csv").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for score in measured().scores:
        assert f"{score.log_loss.value:.4f}" in shown
        if score.calibration_error is not None:
            assert f"│ {score.calibration_error.low:.3f} to {score.calibration_error.high:.3f} │" in " ".join(
                shown.split()
            )
        if score.gain is not None:
            gain = score.gain
            line = next(line for line in shown.splitlines() if f"{gain.low:.4f} to {gain.high:.4f}" in line)
            assert f"{gain.value:.4f} (" in line
            assert f" {score.name} " in line


def test_text_of_the_data_is_no_markup_in_the_tables(targets):
    text = Path("test.csv").read_text().replace(",English", ",[/foo]").replace(",Polish", ",[bold]")
    Path("test.csv").write_text(text)
    groups = run("evaluate", "small.toml").stdout
    assert "│ [/foo] " in groups
    assert "│ [bold] " in groups


def test_a_bar_for_every_step_that_takes_long_is_on_stderr(targets, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(progress_bars, "notes", Console(file=shown, force_terminal=True))
    assert "evaluate files" not in run("evaluate", "small.toml", "--json").stdout
    for step in ("evaluate files", "evaluate resamples"):
        assert step in shown.getvalue()


def test_a_group_has_the_log_loss_of_its_battles(targets):
    polish = np.arange(BATTLES) % 3 == 1
    mean = (judge(1) + judge(2)) / 2
    group = next(group for group in measured().groups["language"] if group.name == "Polish")
    assert group.log_loss.value == pytest.approx(metrics.log_loss(mean[polish], targets[polish]))


def test_predictions_that_exchange_with_the_responses_are_consistent(targets):
    exchanged = {"gemma": judge(1)[:, [1, 0, 2]], "llama": judge(2)[:, [1, 0, 2]]}
    write_predictions("swapped.csv", exchanged)
    for swap in measured(swapped=Path("swapped.csv")).swaps:
        assert swap.same_decision.value == 1
        assert swap.mean_difference.value == pytest.approx(0, abs=1e-12)
        assert swap.position_bias.value == pytest.approx(0, abs=1e-12)


def test_predictions_that_ignore_the_order_have_the_bias_they_lean_with(targets):
    write_predictions("swapped.csv", {"gemma": judge(1), "llama": judge(2)})
    swaps = {swap.name: swap for swap in measured(swapped=Path("swapped.csv")).swaps}
    lead = judge(1)[:, 0] - judge(1)[:, 1]
    assert swaps["gemma"].position_bias.value == pytest.approx(lead.mean())
    assert swaps["gemma"].same_decision.value < 0.5


def test_the_symmetric_ensemble_has_scores_of_its_own(targets):
    write_predictions("symmetric.csv", both := {"gemma": (judge(1) + judge(3)) / 2, "llama": (judge(2) + judge(4)) / 2})
    scores = {score.name: score for score in measured(symmetric=Path("symmetric.csv")).scores}
    expected = metrics.log_loss((both["gemma"] + both["llama"]) / 2, targets)
    assert list(scores) == ["gemma", "llama", "ensemble", "symmetric", "class prior", "uniform"]
    assert scores["symmetric"].log_loss.value == pytest.approx(expected)


def test_predictions_of_the_exchanged_battles_give_the_same_symmetric_scores(targets):
    write_predictions("swapped.csv", {"gemma": judge(3), "llama": judge(4)})
    averages = {"gemma": (judge(1) + judge(3)[:, [1, 0, 2]]) / 2, "llama": (judge(2) + judge(4)[:, [1, 0, 2]]) / 2}
    write_predictions("symmetric.csv", averages)
    one, other = measured(swapped=Path("swapped.csv")).scores[3], measured(symmetric=Path("symmetric.csv")).scores[3]
    assert (one.name, one.log_loss.value) == (other.name, pytest.approx(other.log_loss.value, abs=1e-6))


def test_the_symmetric_file_says_the_same_as_the_swapped_one(targets):
    members = {"gemma": judge(3), "llama": judge(4)}
    write_predictions("swapped.csv", members)
    averages = {name: (judge(seed) + members[name][:, [1, 0, 2]]) / 2 for name, seed in (("gemma", 1), ("llama", 2))}
    write_predictions("symmetric.csv", averages)
    swapped = measured(swapped=Path("swapped.csv")).swaps
    symmetric = measured(symmetric=Path("symmetric.csv")).swaps
    assert [swap.name for swap in symmetric] == ["gemma", "llama", "ensemble"]
    for one, other in zip(swapped, symmetric, strict=True):
        assert one.same_decision.value == pytest.approx(other.same_decision.value)
        assert one.position_bias.value == pytest.approx(other.position_bias.value)
    write_predictions("symmetric.csv", {"gemma": judge(8), "llama": judge(9)})
    with pytest.raises(UserError, match="does not hold averages of both orders"):
        measured(symmetric=Path("symmetric.csv"))


def test_both_files_of_the_other_order_are_one_too_many(targets):
    with pytest.raises(UserError, match="Both `--swapped` and `--symmetric`"):
        measured(swapped=Path("x.csv"), symmetric=Path("y.csv"))


def test_truncation_is_counted_by_battle_and_judged_apart(targets):
    cost = measured().truncation[0]
    cut = np.arange(BATTLES) % 4 > 0
    assert cost.battles_cut == cut.sum()
    assert cost.tokens_lost is None  # there is no tokenizer here
    assert cost.log_loss_cut.value == pytest.approx(metrics.log_loss(judge(1)[cut], targets[cut]))
    assert cost.log_loss_whole.value == pytest.approx(metrics.log_loss(judge(1)[~cut], targets[~cut]))


def test_the_length_baseline_joins_the_table_once_it_is_fitted(targets):
    without = run("evaluate", "small.toml")
    assert "no length baseline" in without.stderr
    run("baseline", "small.toml")
    fitted = run("evaluate", "small.toml")
    assert "no length baseline" not in fitted.stderr
    assert "length buckets" in fitted.stdout


def test_the_length_baseline_is_cross_validated_on_the_file_that_it_was_fitted_on(targets):
    run("baseline", "small.toml")
    data = read_labelled(Path("test.csv"), LABELS_THREE_WAY)
    expected = cross_validated(data, LABELS_THREE_WAY, BaselineSettings())
    score = next(score for score in measured().scores if score.name.startswith("length"))
    assert score.name == "length buckets (cross-validated)"
    assert score.log_loss == expected.log_loss
    shutil.copy("test.csv", "renamed.csv")
    again = evaluate(load_config("small.toml"), Path("build/small/predictions.csv"), Path("renamed.csv"))
    assert score in again.scores


def test_the_length_baseline_is_asked_as_it_is_about_other_battles(targets):
    Path("train.csv").write_text(Path("test.csv").read_text().replace(",English", ",French"))
    Path("small.toml").write_text(CONFIG.replace('train = "test.csv"', 'train = "train.csv"'))
    run("baseline", "small.toml")
    data = read_labelled(Path("test.csv"), LABELS_THREE_WAY)
    buckets = read_baseline(load_config("small.toml"))
    expected = metrics.log_loss(buckets.predict(differences_of(data.battles, "characters")), data.targets)
    score = next(score for score in measured().scores if score.name.startswith("length"))
    assert score.name == "length buckets"
    assert score.log_loss.value == pytest.approx(expected)


def test_each_source_is_compared_with_the_length_baseline_in_as_many_orders_as_it_read(targets):
    Path("train.csv").write_text(Path("test.csv").read_text().replace(",English", ",French"))
    Path("small.toml").write_text(CONFIG.replace('train = "test.csv"', 'train = "train.csv"'))
    assert all(score.gain_over_length is None for score in measured().scores)
    run("baseline", "small.toml")
    write_predictions("swapped.csv", {"gemma": judge(3), "llama": judge(4)})
    scores = {score.name: score for score in measured(swapped=Path("swapped.csv")).scores}
    battles = read_labelled(Path("test.csv"), LABELS_THREE_WAY).battles
    buckets = read_baseline(load_config("small.toml"))
    one = buckets.predict(differences_of(battles, "characters"))
    other = buckets.predict(differences_of([battle.swapped() for battle in battles], "characters"))[:, [1, 0, 2]]
    for name, baseline in (("gemma", one), ("ensemble", one), ("symmetric", (one + other) / 2)):
        gain = scores[name].gain_over_length
        assert gain.value == pytest.approx(metrics.log_loss(baseline, targets) - scores[name].log_loss.value)
        assert gain.low < gain.value < gain.high
    assert np.abs(one - other).max() > 0.01
    assert {name for name, score in scores.items() if score.gain_over_length is None} == {
        *("length buckets", "class prior", "uniform")
    }
    options = ["--swapped", "swapped.csv", "--report", "report.html"]
    shown = run("evaluate", "small.toml", *options).stdout
    text = f"{gain.value:.4f} ({gain.low:.4f} to {gain.high:.4f})"
    assert text in next(line for line in shown.splitlines() if text in line and " symmetric " in line)
    assert text in Path("report.html").read_text(encoding="utf-8")


def test_a_length_baseline_among_the_members_is_what_the_others_are_compared_with(targets):
    member = '[[member]]\nname = "llama"\nkind = "length_buckets"\nbase = "buckets"\n'
    Path("small.toml").write_text(configuration(classifier_member("gemma"), member, data={"test": "test.csv"}))
    write_predictions("swapped.csv", {"gemma": judge(3), "llama": judge(4)})
    scores = {score.name: score for score in measured(swapped=Path("swapped.csv")).scores}
    assert "length buckets" not in scores
    assert scores["llama"].gain_over_length is None
    one, both = judge(2), (judge(2) + judge(4)[:, [1, 0, 2]]) / 2
    for name, baseline in (("gemma", one), ("ensemble", one), ("symmetric", both)):
        expected = metrics.log_loss(baseline, targets) - scores[name].log_loss.value
        assert scores[name].gain_over_length.value == pytest.approx(expected, abs=1e-6)


def test_on_real_battles_the_report_shows_by_how_much_length_beats_the_class_prior(targets, real_battles):
    Path("small.toml").write_text(CONFIG.replace('train = "test.csv"', f'train = "{real_battles}"'))
    run("baseline", "small.toml")
    ids = read_labelled(real_battles, LABELS_THREE_WAY).ids
    write_csv("real.csv", ["id", *LABELS_THREE_WAY], [[identity, 0.4, 0.4, 0.2] for identity in ids])
    options = ["--predictions", "real.csv", "--battles", real_battles]
    result = json.loads(run("evaluate", "small.toml", *options, "--report", "report.html", "--json").stdout)
    (gain,) = [score["gain"] for score in result["scores"] if score["name"] == "length buckets (cross-validated)"]
    assert gain["value"] == pytest.approx(0.059, abs=0.003)
    assert gain["low"] > 0.03
    shown = f"{gain['value']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})"
    assert shown in Path("report.html").read_text(encoding="utf-8")


def test_json_is_strict_and_repeatable(targets):
    one, other = run("evaluate", "small.toml", "--json"), run("evaluate", "small.toml", "--json")
    assert one.stdout == other.stdout
    result = json.loads(one.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert result["battles"] == BATTLES
    assert result["bootstrap"] == {"resamples": 1000, "seed": 0}


def test_another_seed_moves_the_bounds_but_not_the_values(targets):
    one, other = measured(), measured(bootstrap=Bootstrap(seed=5))
    assert one.scores[0].log_loss.value == other.scores[0].log_loss.value
    assert one.scores[0].log_loss.low != other.scores[0].log_loss.low
