"""The command: generate, fit and evaluate, each skipped when nothing changed."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_training.battles.rows import read_labelled

TEST_FILE = Path("build/small/data/test.csv")


def replace_in_config(old, new):
    path = Path("small.toml")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.slow
def test_generating_and_fitting_once_is_enough(workplace, train):
    first = train("generate", "small.toml")
    assert first.exit_code == 0, first.stderr
    assert "build/small/bases/llama: parameters" in first.stderr
    assert first.stdout == ""
    fitted = train("fit", "small.toml", "--jobs", 1)
    assert fitted.exit_code == 0, fitted.stderr
    assert "build/small/adapters/gemma: " in fitted.stderr
    assert "build/small/adapters/llama: " in fitted.stderr
    assert Path("build/small/adapters/llama/adapter_model.safetensors").is_file()
    again = train("generate", "small.toml").stderr + train("fit", "small.toml").stderr
    assert again.count("up to date") == 5
    assert "parameters" not in again


@pytest.mark.slow
def test_a_changed_recipe_fits_that_member_only(workplace, train):
    train("generate", "small.toml")
    train("fit", "small.toml", "--jobs", 1)
    replace_in_config("rank = 4", "rank = 2")
    result = train("fit", "small.toml")
    assert "adapters/llama: up to date" in result.stderr
    assert "adapters/gemma: trainable_parameters" in result.stderr


@pytest.mark.slow
def test_members_fitted_side_by_side_are_those_fitted_alone(workplace, train):
    train("generate", "small.toml")
    weights = [Path(f"build/small/adapters/{name}/adapter_model.safetensors") for name in ("gemma", "llama")]
    assert train("fit", "small.toml", "--jobs", 2).exit_code == 0
    together = [path.read_bytes() for path in weights]
    for path in weights:
        path.unlink()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
    try:
        assert train("fit", "small.toml", "--jobs", 1).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    assert together == [path.read_bytes() for path in weights]


def test_an_unknown_member_names_the_nearest(workplace, train):
    train("generate", "small.toml")
    result = train("fit", "small.toml", "--member", "lama")
    assert result.exit_code == 2
    assert result.stderr == "error: There is no member `lama`\nhint: Did you mean `llama`?\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_quantised_recipe_without_a_gpu_is_one_error_and_no_adapter(workplace, train):
    train("generate", "small.toml")
    replace_in_config("rank = 4", 'rank = 4\nquantisation = "nf4"')
    result = train("fit", "small.toml")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The recipe of `gemma` quantises its base to nf4")
    assert result.stderr.count("hint: ") == 1
    assert not Path("build/small/adapters").exists()


def test_fitting_before_generating_says_what_to_run(workplace, train):
    result = train("fit", "small.toml")
    assert result.exit_code == 2
    assert "hint: `preference-train generate CONFIG`" in result.stderr


def test_a_base_outside_the_build_folder_is_never_written(workplace, train):
    replace_in_config('"build/small/bases/gemma"', '"my/own/base"')
    result = train("generate", "small.toml")
    assert result.exit_code == 2
    assert "`base` of `gemma` is `my/own/base`" in result.stderr
    assert not Path("my").exists()


@pytest.fixture
def predictions(workplace, train):
    """Predictions for the test battles, in another order, as `preference-score` writes them."""
    train("generate", "small.toml")
    data = read_labelled(TEST_FILE, LABELS_THREE_WAY)
    random = np.random.default_rng(0)
    members = random.dirichlet((2, 2, 2), (len(data.ids), 2))
    columns = [*LABELS_THREE_WAY, *(f"{name}_{label}" for name in ("gemma", "llama") for label in LABELS_THREE_WAY)]
    path = Path("build/small/predictions.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *columns, "gemma_dropped_tokens"])
        for row in random.permutation(len(data.ids)):
            values = np.concatenate([members[row].mean(axis=0), *members[row]])
            writer.writerow([data.ids[row], *values, 2])
    return path, data, members


def test_predictions_are_joined_by_id_whatever_their_order(train, predictions):
    _, data, members = predictions
    result = train("evaluate", "small.toml", "--json")
    assert result.exit_code == 0, result.stderr
    scores = {score["name"]: score for score in json.loads(result.stdout)["scores"]}
    rows = np.arange(len(data.ids))
    for name, probabilities in (
        ("gemma", members[:, 0]),
        ("llama", members[:, 1]),
        ("ensemble", members.mean(axis=1)),
    ):
        assert scores[name]["log_loss"]["value"] == pytest.approx(-np.log(probabilities[rows, data.targets]).mean())
        assert scores[name]["accuracy"]["value"] == pytest.approx((probabilities.argmax(1) == data.targets).mean())
    assert scores["uniform"]["log_loss"]["value"] == pytest.approx(np.log(3))
    assert scores["class prior"]["log_loss"]["value"] < scores["uniform"]["log_loss"]["value"]
    assert scores["gemma"]["dropped_tokens"] == 2 * len(data.ids)
    assert "dropped_tokens" not in scores["llama"]


def test_the_table_has_a_row_for_each_source(train, predictions):
    printed = train("evaluate", "small.toml").stdout
    for word in ("24 battles", "gemma", "llama", "ensemble", "class prior", "uniform", "1.0986", "log loss"):
        assert word in printed


def test_a_submission_without_members_is_evaluated_too(train, predictions):
    path, _, _ = predictions
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row[:4] for row in rows)
    names = [s["name"] for s in json.loads(train("evaluate", "small.toml", "--json").stdout)["scores"]]
    assert names == ["ensemble", "class prior", "uniform"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[:-1], "1 labelled ids have no prediction"),
        (lambda rows: [*rows[:-1], ["77", *rows[-1][1:]]], "1 predictions have no label (such as `77`)"),
        (lambda rows: [*rows, rows[-1]], "is repeated"),
        (lambda rows: [row[:-2] + row[-1:] for row in rows], "there is no column `llama_winner_tie`"),
        (lambda rows: [*rows[:-1], [rows[-1][0], "0.9", *rows[-1][2:]]], "the probabilities do not sum to 1"),
        (lambda rows: [*rows[:-1], [rows[-1][0], "nan", *rows[-1][2:]]], "the probabilities do not sum to 1"),
        (lambda rows: [*rows[:-1], [rows[-1][0], "x", *rows[-1][2:]]], "the probabilities are not all numbers"),
    ],
    ids=["too few", "another id", "twice", "no column", "sum", "nan", "text"],
)
def test_predictions_that_do_not_fit_the_labels_are_refused(train, predictions, change, expected):
    path, _, _ = predictions
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(change(rows))
    result = train("evaluate", "small.toml")
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""


def with_dropped_tokens(path, text):
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *([*row[:-1], text] for row in rows[1:])])


def test_dropped_tokens_may_be_written_as_whole_floats(train, predictions):
    path, data, _ = predictions
    with_dropped_tokens(path, "2.0")
    scores = json.loads(train("evaluate", "small.toml", "--json").stdout)["scores"]
    assert scores[0]["dropped_tokens"] == 2 * len(data.ids)


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "nan", "inf"])
def test_dropped_tokens_that_are_no_counts_are_refused(train, predictions, text):
    with_dropped_tokens(predictions[0], text)
    result = train("evaluate", "small.toml")
    assert result.exit_code == 2
    assert f"is {text!r}, expected a whole number" in result.stderr
    assert "`gemma_dropped_tokens` of the id `" in result.stderr


@pytest.mark.slow
def test_commands_that_have_nothing_to_train_import_no_torch(workplace, train, predictions):
    """Run in a fresh interpreter: an up-to-date stage and an evaluation answer at once."""
    code = "import sys; from preference_training.app import main; sys.argv[1:] = {!r}; " + (
        "\ntry: main()\nexcept SystemExit as stopped: sys.exit(3 if 'torch' in sys.modules else stopped.code)"
    )
    for arguments in (["generate", "small.toml"], ["evaluate", "small.toml"]):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, capture_output=True)
