"""What `make demo` prints and leaves behind, and that a second one reuses it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_predictions_have_one_row_per_battle_in_order_and_sum_to_one(demo):
    battles, predictions = demo.rows("data/test.csv"), demo.rows("predictions.csv")
    assert [row["id"] for row in predictions] == [row["id"] for row in battles]
    for row in predictions:
        assert sum(float(row[label]) for label in demo.config.labels) == pytest.approx(1, abs=1e-6)


def test_the_table_shows_the_ensemble_clearly_under_the_class_prior(demo):
    from preference_core.ensemble import metrics

    labels = demo.config.labels
    targets = [metrics.target_of_row(row, labels) for row in demo.rows("data/test.csv")]
    predictions = demo.rows("predictions.csv")
    ensemble = metrics.log_loss([[float(row[label]) for label in labels] for row in predictions], targets)
    prior = metrics.class_prior_log_loss(targets, len(labels))
    assert ensemble < prior - 0.1
    for name in ("gemma", "llama", "ensemble", "prior"):
        assert name in demo.output
    assert f"{ensemble:.4f}" in demo.output
    assert f"{prior:.4f}" in demo.output


def test_a_second_demo_reuses_what_is_valid_and_says_so(demo):
    artefacts = sorted((demo.folder / "repository").rglob("*.onnx*"))
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in artefacts]
    run = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert artefacts
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in artefacts] == before
    assert "up to date" in run.stdout + run.stderr
