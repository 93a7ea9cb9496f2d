"""The report: one page that needs nothing else, whatever was measured."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from configurations import classifier_member, configuration
from pyarrow import csv, parquet
from rich.console import Console
from typer.testing import CliRunner

from preference_core.ensemble.loading import load_config
from preference_core.errors import UserError
from preference_core.files.predictions import ANSWERED_BY
from preference_training.app import app
from preference_training.evaluation import charts, number_text
from preference_training.evaluation.breakdown import reliability_of
from preference_training.evaluation.evaluate import evaluate
from preference_training.evaluation.report import report_of
from preference_training.statistics.intervals import Estimate
from preference_training.terminal.tables import evaluation_tables

THREE_WAY = ("winner_model_a", "winner_model_b", "winner_tie")


def page_of(folder, labels=THREE_WAY, members=("gemma", "llama"), battles=60, language="<script>alert(1)</script>"):
    """The report on random predictions of random battles."""
    random = np.random.default_rng(1)
    config = folder / "small.toml"
    config.write_text(configuration(*(classifier_member(name, template="gemma") for name in members), labels=labels))
    targets = random.integers(len(labels), size=battles)
    lines = ["id,prompt,response_a,response_b,winner,language"]
    for number, target in enumerate(targets):
        a, b = random.integers(1, 99, size=2)
        lines.append(f"{number},why?,{'a' * a},{'b' * b},{labels[target]},{language}")
    (folder / "test.csv").write_text("\n".join(lines))
    header = ["id", *labels, *(f"{name}_{label}" for name in members for label in labels)]
    header += [f"{name}_dropped_tokens" for name in members]
    lines = [",".join(header)]
    for number in range(battles):
        values = random.dirichlet(np.ones(len(labels)), size=1 + len(members)).ravel()
        lines.append(",".join(map(str, [number, *values, *(number % 3 for _ in members)])))
    (folder / "predictions.csv").write_text("\n".join(lines))
    settings = load_config(config)
    result = evaluate(settings, folder / "predictions.csv", folder / "test.csv", swapped=folder / "predictions.csv")
    return report_of("small", result), result


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return page_of(tmp_path)


def plots_of(text):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_the_page_loads_nothing_and_runs_nothing(page):
    text, _ = page
    assert not re.findall(r"https?://|<script|<link|@import|url\(|\ssrc=", text)
    assert text.startswith("<!doctype html>")


def test_the_page_says_which_ensemble_answered_if_the_predictions_do(page, tmp_path):
    assert "answered by" not in page[0]
    table = csv.read_csv(tmp_path / "predictions.csv")
    path = tmp_path / "predictions.parquet"
    for metadata, said in (({}, ""), ({ANSWERED_BY: "demo version 7"}, "demo version 7")):
        columns = [pa.array(map(str, table["id"].to_pylist())), *table.columns[1:]]
        parquet.write_table(pa.table(columns, names=table.column_names).replace_schema_metadata(metadata), path)
        result = evaluate(load_config(tmp_path / "small.toml"), path, tmp_path / "test.csv")
        assert result.answered_by == said
    assert "Evaluation on 60 battles, answered by demo version 7." in report_of("small", result)


def test_text_of_the_data_is_escaped(page):
    text, _ = page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_every_plot_is_well_formed_named_and_inside_its_frame(page):
    text, _ = page
    plots = plots_of(text)
    names = [plot.get("aria-label") for plot in plots]
    assert len(set(names)) == len(names) >= 11
    for plot in plots:
        _, _, width, height = map(float, plot.get("viewBox").split())
        for dot in plot.iter("circle"):
            assert 0 <= float(dot.get("cx")) <= width
            assert 0 <= float(dot.get("cy")) <= height


def test_the_page_shows_the_measured_numbers(page):
    text, result = page
    ensemble = next(score for score in result.scores if score.name == "ensemble")
    assert f"<b>{ensemble.log_loss.value:.4f}</b>" in text
    assert f"{ensemble.log_loss.low:.4f} to {ensemble.log_loss.high:.4f}" in text
    for row in result.confusion:
        for count in row:
            assert f">{count}<" in text
    for row in result.confusion_shares:
        for share in row:
            assert f">{share.value:.0%} ({100 * share.low:.0f}-{100 * share.high:.0f})<" in text
    gain = ensemble.gain
    assert f"<b>{gain.value:.4f}</b><span>{gain.low:.4f} to {gain.high:.4f}</span>" in text
    sections = re.findall(r"<h2>(.*?)</h2>", text)
    expected = ["Scores", "Reliability", "Confusion", "Length", "Number of turns", "Language", "Position", "Verbosity"]
    assert sections == [*expected, "Agreement", "Truncation"]


def test_every_gain_is_drawn_beside_a_line_at_zero(page):
    text, result = page
    plot = next(plot for plot in plots_of(text) if plot.get("aria-label") == "Log loss below the class prior")
    texts = ["".join(element.itertext()) for element in plot.iter("text")]
    gains = [score for score in result.scores if score.gain is not None]
    assert [score.name for score in gains] == ["gemma", "llama", "ensemble", "symmetric"]
    (zero,) = [line for line in plot.iter("line") if line.get("class") == "reference"]
    dots = [float(dot.get("cx")) for dot in plot.iter("circle")]
    for score, at in zip(gains, dots, strict=True):
        gain = score.gain
        assert f"{gain.value:.4f} ({gain.low:.4f} to {gain.high:.4f})" in texts
        assert (at < float(zero.get("x1"))) == (gain.value < 0)


def test_two_labels_and_one_member_make_a_page_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, _ = page_of(tmp_path, labels=("model_a", "model_b"), members=("gemma",), language="")
    assert plots_of(text)
    assert "unknown (60)" in text


def test_labels_are_no_markup_in_the_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, result = page_of(tmp_path, labels=("[bold]_a", "[bold]_b"))
    console = Console(file=io.StringIO(), width=80)
    for table in evaluation_tables(load_config("small.toml"), result):
        console.print(table)
    for label in ("[bold]_a", "[bold]_b"):
        assert console.file.getvalue().count(f" {label} ") >= 2


@pytest.mark.parametrize("battles", [1, 2])
def test_a_handful_of_battles_make_a_page_too(tmp_path, monkeypatch, battles):
    monkeypatch.chdir(tmp_path)
    text, _ = page_of(tmp_path, battles=battles)
    assert plots_of(text)
    assert "(n/a)" in text
    assert "n/a: fewer than 10 battles" in text
    assert "nan" not in text


def test_the_page_promises_a_tenth_of_the_battles_only_where_probabilities_differ(page):
    random = np.random.default_rng(2)
    targets, labels = random.integers(3, size=100), ("a", "b", "tie")
    for tied, battles in ((np.full((100, 3), 1 / 3), {100}), (random.dirichlet(np.ones(3), size=100), {10})):
        points = reliability_of(tied, targets, labels)
        assert {point.battles for line in points.values() for point in line} == battles
    text, _ = page
    assert "Each point holds about a tenth of the battles; more where many have the same probability." in text


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.056, 0.044, 0.123), "0.056\n0.044 to 0.123"),
        (Estimate(0.056, 0.0, 0.07), "0.056\n0.000 to 0.070"),
        (Estimate(0.620, 0.577, 0.662), "0.620 ±0.043"),
        (Estimate(0.5, None, None), "0.500 n/a"),
        (Estimate(0.5, 0.5, 0.5, is_exact=True), "0.500"),
        (None, ""),
    ],
)
def test_half_an_interval_stands_only_for_one_that_is_symmetric(estimate, expected):
    assert number_text.spread(estimate, 3) == expected


def test_a_calibration_error_is_shown_with_both_bounds_however_they_lie():
    assert number_text.stacked(Estimate(0.043, 0.0, 0.09), 3) == "0.043\n0.000 to 0.090"
    assert number_text.stacked(Estimate(0.043, None, None), 3) == "0.043 n/a"
    assert number_text.stacked(None) == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 0.97), (-0.4, 0.2), (1e-4, 3e-4), (0, 12345)])
def test_ticks_are_few_round_and_within_the_axis(low, high):
    values = charts.ticks(low, high)
    assert 3 <= len(values) <= 8
    assert min(values) >= low - 1e-9
    assert max(values) <= high + 1e-9
    assert len({f"{value:g}" for value in values}) == len(values)


def test_an_interval_is_drawn_where_its_bounds_are():
    row = charts.ChartLine("one", (Estimate(0.5, 0.25, 0.75),))
    plot = ElementTree.fromstring(charts.intervals([row], "title", "axis"))
    (line,) = [line for line in plot.iter("line") if line.get("class", "").startswith("interval")]
    (dot,) = plot.iter("circle")
    left, middle, right = float(line.get("x1")), float(dot.get("cx")), float(line.get("x2"))
    assert middle - left == pytest.approx(right - middle, abs=0.05)
    assert left < middle


def test_the_command_writes_the_page(page, tmp_path):
    arguments = ["evaluate", "small.toml", "--predictions", "predictions.csv", "--battles", "test.csv"]
    result = CliRunner().invoke(app, [*arguments, "--report", "report.html"], catch_exceptions=False)
    assert "report.html: written" in result.stderr
    assert Path("report.html").read_text(encoding="utf-8").count("<svg") >= 9


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(page):
    arguments = ["evaluate", "small.toml", "--predictions", "none.csv", "--battles", "test.csv", "--report"]
    for report, expected in (("report.pdf", r"report\.pdf"), ("nowhere/report.html", "no folder `nowhere`")):
        with pytest.raises(UserError, match=expected):
            CliRunner().invoke(app, [*arguments, report], catch_exceptions=False)
