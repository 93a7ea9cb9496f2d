"""Every published system: `make twin CONFIG=configs/...` trains, exports, serves, scores and evaluates its tiny twin.

The twins are made two at a time; of those that differ in their combination alone, one is made. Each test then looks at
what is that system's own.
"""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from finished_run import FinishedRun
from safetensors import safe_open

from preference_core.artefacts.manifest import verify
from preference_core.battles.battle import battle_from_row
from preference_core.battles.lengths import read_buckets
from preference_core.ensemble.combination import Combination
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.metrics import log_loss, target_of_row
from preference_core.structure import plain, structure
from preference_training.synthetic.twin import twin_of

ROOT = Path(__file__).parents[2]
SYSTEMS = (
    "lmsys",
    "binary-gemma-2-2b",
    "course",
    "single-gemma",
    "single-llama",
    "single-qwen",
    "length",
    "three-heads",
    "light",
    "new-bases",
)
#: Twins that are those of another system, combined in another way: what is made once proves both.
COMBINED_OTHERWISE = {"average": "lmsys", "threshold": "single-gemma"}


class Twin(FinishedRun):
    """What `make twin` left behind."""

    @property
    def predicted(self):
        """Probabilities `[battles, labels]` of the ensemble."""
        rows = self.rows("predictions.csv")
        return np.array([[float(row[label]) for label in self.config.labels] for row in rows])

    def predicted_by(self, member):
        """The same of one member."""
        rows, labels = self.rows("predictions.csv"), self.config.labels
        return np.array([[float(row[f"{member}_{label}"]) for label in labels] for row in rows])

    @property
    def battles(self):
        return [battle_from_row(row) for row in self.rows("data/test.csv")]

    @property
    def served_rule(self):
        """The rule that the served ensemble combines by."""
        (path,) = (self.folder / "repository" / "combine").glob("*/combination.json")
        return json.loads(path.read_text(encoding="utf-8"))


def make_twin(name):
    run = subprocess.run(
        ["make", "twin", f"CONFIG=configs/{name}.toml"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    config = load_config(ROOT / "build" / "twins" / f"{name}.toml")
    return Twin(ROOT / config.folders.root, config, run.stdout + run.stderr)


@pytest.fixture(scope="module")
def twins():
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(make_twin, name) for name in SYSTEMS}


@pytest.fixture
def twin(twins, request):
    return twins[request.param].result()


def of(*names):
    return pytest.mark.parametrize("twin", names, indirect=True)


@of(*SYSTEMS)
def test_the_twin_is_served_and_its_metrics_are_printed(twin):
    battles, predictions, labels = twin.rows("data/test.csv"), twin.rows("predictions.csv"), twin.config.labels
    assert [row["id"] for row in predictions] == [row["id"] for row in battles]
    assert np.abs(twin.predicted.sum(axis=1) - 1).max() < 1e-6
    targets = [target_of_row(row, labels) for row in battles]
    assert f"{log_loss(twin.predicted, targets):.4f}" in twin.output
    for shown in ("length buckets", "class prior", "Log loss below the class prior", "Responses exchanged"):
        assert shown in twin.output
    manifest = verify(twin.folder / "repository")
    assert set(manifest.parity) == {member.name for member in twin.config.members}
    for record in manifest.parity.values():
        assert record["max_probability_difference"] <= 1e-5
        assert record["decision_flips"] == 0


@of("lmsys")
def test_the_published_pair_is_combined_with_its_published_weights(twin):
    assert twin.served_rule["weights"] == [0.4257644179, 0.5742355821]
    expected = 0.4257644179 * twin.predicted_by("gemma") + 0.5742355821 * twin.predicted_by("llama")
    assert np.abs(twin.predicted - expected).max() < 1e-6


@of("binary-gemma-2-2b")
def test_the_binary_system_has_two_labels_cuts_in_the_middle_and_trains_some_layers_only(twin):
    assert len(twin.config.labels) == 2
    member = twin.config.members[0]
    assert member.truncation.policy == "middle"
    cut = [row for row in twin.rows("predictions.csv") if int(row[f"{member.name}_dropped_tokens"])]
    assert cut
    with safe_open(twin.folder / "adapters" / member.name / "adapter_model.safetensors", "numpy") as tensors:
        names = list(tensors.keys())
    layers = {name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name}
    assert "0" not in layers
    assert {name.split(".")[-3] for name in names if ".layers." in name} == {"q_proj", "k_proj", "v_proj"}


@of("binary-gemma-2-2b", "light")
def test_systems_that_split_one_file_split_it_by_prompt(twin):
    assert verify(twin.folder / "data").kind == "split"
    parts = [twin.rows(f"data/{part}.csv") for part in ("train", "validation", "test")]
    assert sorted(row["id"] for rows in parts for row in rows) == sorted(
        row["id"] for row in twin.rows("source/battles.csv")
    )
    prompts = [{row["prompt"] for row in rows} for rows in parts]
    assert not any(one & other for one, other in combinations(prompts, 2))
    shares = twin.config.training["split"]
    for part, rows in zip(("train", "validation", "test"), parts, strict=True):
        assert len(rows) / 640 == pytest.approx(shares[part], abs=0.05)


@of("course")
def test_the_course_solution_takes_the_weights_that_its_members_scores_gave(twin):
    weights = dict(zip(twin.served_rule["members"], twin.served_rule["weights"], strict=True))
    assert weights == dict(twin.config.combine.weights)
    targets = [target_of_row(row, twin.config.labels) for row in twin.rows("data/validation.csv")]
    rows = twin.rows("validation_predictions.csv")
    losses = {
        name: log_loss([[float(row[f"{name}_{label}"]) for label in twin.config.labels] for row in rows], targets)
        for name in weights
    }
    assert weights["gemma"] / weights["llama"] == pytest.approx(losses["llama"] / losses["gemma"], rel=1e-5)


@of("single-gemma", "single-llama", "single-qwen")
def test_a_single_model_is_its_one_member_alone(twin):
    (member,) = twin.config.members
    assert np.abs(twin.predicted - twin.predicted_by(member.name)).max() < 1e-6


@of("length")
def test_the_length_baseline_serves_what_its_buckets_say(twin):
    buckets = read_buckets(twin.folder / "baseline", twin.config.labels)
    expected = [buckets.probabilities[buckets.bucket_of(battle)] for battle in twin.battles]
    assert np.abs(twin.predicted - np.array(expected)).max() < 1e-6


@of("three-heads", "light")
def test_systems_with_three_heads_export_the_preference_head_alone(twin):
    for member in twin.config.members:
        assert member.training["identity_loss_weight"] == 1.0
        with safe_open(twin.folder / "adapters" / member.name / "adapter_model.safetensors", "numpy") as tensors:
            heads = [name for name in tensors.keys() if ".layers." not in name]  # noqa: SIM118
        assert heads == ["base_model.model.score.weight"]


@pytest.mark.parametrize(("name", "other"), COMBINED_OTHERWISE.items())
def test_the_twin_is_that_of_another_system_combined_otherwise(name, other):
    table, known = (twin_of(ROOT / "configs" / f"{each}.toml") for each in (name, other))
    assert table.pop("combine") != known.pop("combine")
    assert json.loads(json.dumps(table).replace(f"{name}-twin", f"{other}-twin")) == json.loads(json.dumps(known))


@of("new-bases")
def test_equal_weights_are_the_plain_average(twin):
    expected = np.mean([twin.predicted_by(member.name) for member in twin.config.members], axis=0)
    assert np.abs(twin.predicted - expected).max() < 1e-6
    combination = load_config(ROOT / "configs" / "average.toml").combination
    assert combination.probabilities(np.log([[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3]]])) == pytest.approx(
        np.array([[0.5, 0.3, 0.2]])
    )


@of("light")
def test_systems_with_a_threshold_raise_confident_predictions(twin):
    rule = twin.served_rule
    assert rule["post_processing"] == plain(load_config(ROOT / "configs" / "threshold.toml").combine.post_processing)
    assert rule["post_processing"]["threshold"] == 0.75
    averaged = np.mean([twin.predicted_by(member.name) for member in twin.config.members], axis=0)
    multipliers = [rule["post_processing"]["multipliers"][label] for label in twin.config.labels]
    raised = np.where(averaged > 0.75, averaged * multipliers, averaged)
    assert np.abs(twin.predicted - raised / raised.sum(axis=1, keepdims=True)).max() < 1e-6
    # A twin is rarely that sure of anything, so what it is served with is asked about members that are.
    sure = np.log([[[0.8, 0.1, 0.1]] * len(twin.config.members), [[0.1, 0.1, 0.8]] * len(twin.config.members)])
    answer = structure(Combination, rule).probabilities(sure)
    expected = [[0.8 * 1.125, 0.1, 0.1], [0.1, 0.1, 0.8 * 1.325]]
    assert np.abs(answer - np.array(expected) / np.sum(expected, axis=1, keepdims=True)).max() < 1e-9
