"""How members are combined: the published rule, the least log loss, temperatures, multipliers, and the file written."""

import io
import json
import random
import tomllib
from pathlib import Path

import battle_files
import numpy as np
import pytest
from battle_files import write_judged
from configurations import classifier_member, configuration
from rich.console import Console
from typer.testing import CliRunner

from preference_core.ensemble.combination import softmax
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.metrics import log_loss
from preference_core.ensemble.settings import LABELS_THREE_WAY
from preference_core.errors import ConfigError, UserError
from preference_training.app import app
from preference_training.combining.rules import inverse_log_loss_weights
from preference_training.combining.weights import fit_weights, judged_rows
from preference_training.terminal import progress_bars

CONFIG = configuration(
    classifier_member("gemma"),
    classifier_member("llama"),
    combine={"include": "weights.toml"},
    data={"validation": "validation.csv"},
)
#: Log losses of the two members in the ratio that gives the published weights.
PUBLISHED_RATIO, PUBLISHED = 1.3487167, (0.4257644179, 0.5742355821)


def write_battles(path, targets, responses=("a", "b")):
    write_judged(path, ((f"b{number}", "why?", *responses, target) for number, target in enumerate(targets)))


def write_predictions(path, members, ensemble=None):
    count = len(next(iter(members.values())))
    battle_files.write_predictions(path, members, ids=[f"b{number}" for number in range(count)], ensemble=ensemble)


def shuffle_rows(path):
    header, *rows = Path(path).read_text().splitlines(keepends=True)
    random.Random(3).shuffle(rows)
    Path(path).write_text("".join([header, *rows]))


def drawn(count, noise, seed=0):
    """Targets drawn from known scores, and the probabilities of members that see the scores through `noise` each."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(count, 3))
    targets = np.array([generator.choice(3, p=p) for p in softmax(scores)])
    return targets, [softmax(scores + deviation * generator.normal(size=scores.shape)) for deviation in noise]


@pytest.fixture
def ensemble(tmp_path, monkeypatch):
    """A working directory with a configuration, labelled battles, and predictions of two members: one good, one not."""
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(CONFIG)
    Path("build/small").mkdir(parents=True)
    targets, (good, poor) = drawn(400, (0.3, 1.0))
    write_battles("validation.csv", targets)
    write_predictions("build/small/validation_predictions.csv", {"gemma": poor, "llama": good})
    return Path("small.toml")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def test_the_published_weights_come_out_of_the_published_rule(ensemble):
    targets = np.arange(90) % 3
    members = {}
    for name, loss in (("gemma", 0.7 * PUBLISHED_RATIO), ("llama", 0.7)):
        rows = np.full((90, 3), (1 - np.exp(-loss)) / 2)
        rows[np.arange(90), targets] = np.exp(-loss)
        members[name] = rows
    write_battles("validation.csv", targets)
    write_predictions("build/small/validation_predictions.csv", members)
    run("weights", ensemble, "--rule", "inverse-log-loss")
    weights = tomllib.loads(Path("weights.toml").read_text())["weights"]
    assert (weights["gemma"], weights["llama"]) == pytest.approx(PUBLISHED, abs=1e-8)
    assert tuple(inverse_log_loss_weights([PUBLISHED_RATIO, 1.0])) == pytest.approx(PUBLISHED, abs=1e-8)


@pytest.mark.parametrize("shuffled", ["build/small/validation_predictions.csv", "validation.csv"])
@pytest.mark.parametrize("extras", [[], ["--temperatures", "--post-processing"]])
def test_the_order_of_rows_changes_nothing(ensemble, shuffled, extras):
    ordered = run("weights", ensemble, "--json", *extras, "-o", "ordered.toml")
    shuffle_rows(shuffled)
    again = run("weights", ensemble, "--json", *extras, "-o", "again.toml")
    assert Path("ordered.toml").read_text() == Path("again.toml").read_text()
    assert ordered.stdout == again.stdout


def test_predictions_of_other_battles_are_refused(ensemble):
    path = Path("build/small/validation_predictions.csv")
    path.write_text(path.read_text().replace("\nb7,", "\nc7,"))
    with pytest.raises(UserError, match=r"1 labelled ids have no prediction \(such as `b7`\)"):
        run("weights", ensemble)
    assert not Path("weights.toml").exists()


def test_one_file_per_member_gives_what_one_file_for_all_gives(ensemble):
    run("weights", ensemble, "-o", "together.toml")
    _, (good, poor) = drawn(400, (0.3, 1.0))
    write_predictions("gemma.csv", {"gemma": poor})
    write_predictions("llama.csv", {"llama": good})
    shuffle_rows("llama.csv")
    run("weights", ensemble, "--predictions", "gemma.csv", "--predictions", "llama.csv", "-o", "apart.toml")
    assert Path("together.toml").read_text() == Path("apart.toml").read_text()
    with pytest.raises(UserError, match="no predictions of `llama`"):
        run("weights", ensemble, "--predictions", "gemma.csv")
    with pytest.raises(UserError, match=r"Both `gemma\.csv` and"):
        run("weights", ensemble, "--predictions", "gemma.csv", "--predictions", "gemma.csv")


def test_what_is_written_is_what_the_configuration_includes(ensemble):
    run("weights", ensemble, "--temperatures", "--post-processing")
    written = tomllib.loads(Path("weights.toml").read_text())
    assert sorted(written) == ["post_processing", "temperatures", "weights"]
    combination = load_config(ensemble).combination
    assert combination.weights == tuple(written["weights"].values())
    assert combination.temperatures == tuple(written["temperatures"].values())
    assert combination.post_processing is not None
    assert sum(combination.weights) == pytest.approx(1)


def test_a_missing_include_stops_everything_but_what_runs_before_it(ensemble):
    with pytest.raises(ConfigError, match=r"no file `weights\.toml`"):
        run("evaluate", ensemble)
    assert "does not exist yet" in run("weights", ensemble).stderr
    assert load_config(ensemble).combine.weights["llama"] > 0.5


def test_the_table_advises_against_gains_within_the_noise(ensemble):
    _, (good,) = drawn(400, (0.3,))
    write_predictions("build/small/validation_predictions.csv", {"gemma": good, "llama": good})
    result = json.loads(run("weights", ensemble, "--json").stdout)
    by_name = {candidate["name"]: candidate for candidate in result["candidates"]}
    for rule in ("inverse-log-loss", "log-loss"):
        assert by_name[rule]["gain"]["value"] == pytest.approx(0, abs=1e-6)
    shown = " ".join(run("weights", ensemble).stdout.split())
    assert shown.count("leave out") >= 2


def test_a_bar_for_every_candidate_is_on_stderr(ensemble, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(progress_bars, "notes", Console(file=shown, force_terminal=True))
    run("weights", ensemble)
    for step in ("files", "equal", "inverse-log-loss", "log-loss", "temperatures", "post-processing"):
        assert f"weights {step}" in shown.getvalue()


def test_the_published_multipliers_never_yield_a_row_that_does_not_sum_to_one(ensemble):
    text = (
        Path("small.toml")
        .read_text()
        .replace(
            'include = "weights.toml"',
            "post_processing = { threshold = 0.75, multipliers = "
            "{ winner_model_a = 1.125, winner_model_b = 1.125, winner_tie = 1.325 } }",
        )
    )
    Path("published.toml").write_text(text)
    rule = load_config("published.toml").combination.post_processing
    rows = np.random.default_rng(1).dirichlet(np.full(3, 0.2), size=5000)
    assert (rows.max(axis=1) > 0.9).any()
    assert np.abs(rule.apply(rows, LABELS_THREE_WAY).sum(axis=1) - 1).max() < 1e-12


def test_battles_that_no_member_answers_are_not_fitted_on(ensemble):
    text = (
        Path("small.toml")
        .read_text()
        .replace("[combine]", "[combine]\nfixed = { identical_responses = { winner_tie = 1.0 } }")
    )
    Path("fixed.toml").write_text(text)
    lines = Path("validation.csv").read_text().splitlines(keepends=True)
    lines[1:11] = [line.replace("why?,a,b", "why?,a,a") for line in lines[1:11]]
    Path("validation.csv").write_text("".join(lines))
    result = json.loads(run("weights", "fixed.toml", "--json").stdout)
    assert result["battles"] == 390


def test_configured_temperatures_are_multiplied_with_fitted_ones(ensemble):
    targets, (honest,) = drawn(1500, (0.0,), seed=12)
    Path("weights.toml").write_text("temperatures = { gemma = 2.0, llama = 1.0 }\n")
    twice_too_sure = softmax(2 * np.log(honest))  # although it was already divided by 2
    write_battles("validation.csv", targets)
    write_predictions("predictions.csv", {"gemma": twice_too_sure, "llama": honest})
    config = load_config(ensemble)
    rows = judged_rows(config, [Path("predictions.csv")], Path("validation.csv"))
    kept = fit_weights(config, rows, "log-loss").chosen
    assert kept.temperatures == (2.0, 1.0)
    fitted = fit_weights(config, rows, "log-loss", temperatures=True).chosen
    assert fitted.temperatures == pytest.approx((4, 1), rel=0.25)


def test_predictions_of_another_configuration_are_refused_where_temperatures_matter(ensemble):
    targets, (good, poor) = drawn(100, (0.3, 1.0))
    Path("weights.toml").write_text("temperatures = { gemma = 2.0, llama = 1.0 }\n")
    write_battles("validation.csv", targets)
    write_predictions("predictions.csv", {"gemma": poor, "llama": good}, ensemble=good)
    with pytest.raises(UserError, match="were not made with this configuration"):
        run("weights", ensemble, "--predictions", "predictions.csv")


def test_files_of_one_member_each_are_those_of_the_configuration_too(ensemble):
    targets, (good, poor) = drawn(100, (0.3, 1.0))
    Path("weights.toml").write_text(
        "weights = { gemma = 0.3, llama = 0.7 }\ntemperatures = { gemma = 2.0, llama = 1.0 }"
    )
    write_battles("validation.csv", targets)
    write_predictions("gemma.csv", {"gemma": poor})
    write_predictions("llama.csv", {"llama": good})
    files = [Path("gemma.csv"), Path("llama.csv")]
    rows = judged_rows(load_config(ensemble), files, Path("validation.csv"))
    assert np.exp(rows.log_probabilities).sum(axis=2) == pytest.approx(1)
    write_predictions("llama.csv", {"llama": good}, ensemble=poor)
    with pytest.raises(UserError, match=r"predictions in `llama\.csv` were not made with this configuration"):
        judged_rows(load_config(ensemble), files, Path("validation.csv"))


OWN_RULE = "post_processing = { threshold = 0.4, multipliers = { winner_model_a = 3.0 } }"


def with_own(text, path="small.toml"):
    """Adds a key to the [combine] of a configuration, beside its include."""
    Path(path).write_text(CONFIG.replace("[combine]", f"[combine]\n{text}"))


def test_candidates_are_judged_with_the_post_processing_that_the_configuration_itself_applies(ensemble):
    plain = json.loads(run("weights", ensemble, "--json").stdout)
    with_own(OWN_RULE)
    result = json.loads(run("weights", ensemble, "--json").stdout)
    served = load_config(ensemble)
    assert tomllib.loads(Path("weights.toml").read_text()).keys() == {"weights"}
    targets, (good, poor) = drawn(400, (0.3, 1.0))
    log_probabilities = np.log(np.stack([poor, good], axis=1))
    expected = log_loss(served.combination.probabilities(log_probabilities), targets)
    by_name = {candidate["name"]: candidate for candidate in result["candidates"]}
    assert by_name["log-loss"]["log_loss"] == pytest.approx(expected)
    for before, after in zip(plain["candidates"], result["candidates"], strict=True):
        is_same = before["log_loss"] == pytest.approx(after["log_loss"])
        assert is_same == (before["name"] == "post-processing")  # fitted multipliers take the place of given ones


def test_candidates_are_judged_without_the_post_processing_that_is_about_to_be_replaced(ensemble):
    plain = run("weights", ensemble, "--json").stdout
    Path("weights.toml").write_text(OWN_RULE)
    assert run("weights", ensemble, "--json").stdout == plain
    assert tomllib.loads(Path("weights.toml").read_text()).keys() == {"weights"}


@pytest.mark.parametrize(
    ("own", "options"),
    [
        ("weights = { gemma = 0.5, llama = 0.5 }", []),
        ("temperatures = { gemma = 1.0, llama = 1.0 }", ["--temperatures"]),
        (OWN_RULE, ["--post-processing"]),
    ],
    ids=["weights", "temperatures", "post_processing"],
)
def test_nothing_is_written_that_the_including_configuration_gives_itself(ensemble, own, options):
    with_own(own)
    key = own.split()[0]
    with pytest.raises(UserError, match=rf"`combine\.{key}` is given in `small\.toml`") as caught:
        run("weights", ensemble, *options)
    assert "Remove it from `small.toml`" in caught.value.hint
    assert not Path("weights.toml").exists()
    elsewhere = run("weights", ensemble, *options, "-o", "elsewhere.toml")
    assert 'to use it, let `[combine]` of `small.toml` say: include = "elsewhere.toml"' in " ".join(
        elsewhere.stderr.split()
    )


def test_what_the_configuration_gives_itself_is_kept_there_and_not_written(ensemble):
    with_own("temperatures = { gemma = 2.0, llama = 1.0 }")
    run("weights", ensemble)
    assert tomllib.loads(Path("weights.toml").read_text()).keys() == {"weights"}
    assert load_config(ensemble).combination.temperatures == (2.0, 1.0)
