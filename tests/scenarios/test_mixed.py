"""An ensemble of a classifier and the length baseline, served before it was checked: right, and said so in the log."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preference_client.scorer import Scorer
from preference_core.battles.battle import battle_from_row
from preference_core.battles.lengths import read_buckets
from preference_core.ensemble.loading import load_config
from preference_embedded.launcher import Options, TritonServer

CONFIG = """
name = "mixed"

[[member]]
name = "gemma"
base = "{demo}/bases/gemma"
adapter = "{demo}/adapters/gemma"
template = "gemma"
special_tokens = "template"
max_tokens = 192

[[member]]
name = "length"
kind = "length_buckets"
base = "build/mixed/baseline"

[combine]
weights = {{ gemma = 0.75, length = 0.25 }}

[data]
train = "{demo}/data/train.csv"
sample = "{demo}/data/validation.csv"
"""


@pytest.fixture(scope="module")
def mixed(demo, tmp_path_factory):
    """The folder in which the ensemble was exported without `check`."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "mixed.toml").write_text(CONFIG.format(demo=demo.folder), encoding="utf-8")
    command(folder, "preference-train", "baseline")
    assert command(folder, "preference-export", "onnx").returncode == 0
    return folder


def command(folder, program, stage, *options):
    return subprocess.run(
        [Path(sys.executable).with_name(program), stage, "mixed.toml", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unchecked_member_is_refused_unless_asked_for_and_named_in_the_servers_log(mixed, demo, reference):
    refused = command(mixed, "preference-export", "repository")
    assert refused.returncode == 2
    assert "`gemma` was not compared with the original model" in refused.stderr
    assert "--unchecked" in refused.stderr
    assembled = command(mixed, "preference-export", "repository", "--unchecked")
    assert assembled.returncode == 0, assembled.stderr
    log = mixed / "server.log"
    options = Options(
        mixed / "build" / "mixed" / "repository", python=Path(os.environ["PREFERENCE_SERVER_PYTHON"]), log_file=log
    )
    with (
        TritonServer(options) as server,
        Scorer(server.urls["grpc"]) as scorer,
        Scorer(server.urls["grpc"], symmetric=True) as symmetric,
    ):
        battles = [battle_from_row(row) for row in demo.rows("data/test.csv")[:24]]
        answers, averaged = list(scorer.score_many(battles)), list(symmetric.score_many(battles))
    said = log.read_text(encoding="utf-8", errors="replace")
    for member in ("gemma", "length"):
        assert f"Member `{member}` is served unchecked" in said

    config = load_config(mixed / "mixed.toml")
    buckets = read_buckets(mixed / "build" / "mixed" / "baseline", config.labels)
    gemma = reference.combination.members.index("gemma")
    for battle, answer, both in zip(battles, answers, averaged, strict=True):
        lengths = np.array(buckets.probabilities[buckets.bucket_of(battle)])
        assert answer.token_counts[1] == 1
        assert np.abs(answer.member_probabilities[1] - lengths).max() < 1e-6
        alone = reference.combination.member_probabilities(reference.logits(battle)[None])[0, gemma]
        assert np.abs(answer.probabilities - (0.75 * alone + 0.25 * lengths)).max() < 1e-5
        swapped = np.array(buckets.probabilities[buckets.bucket_of(battle.swapped())])[[1, 0, 2]]
        assert np.abs(both.member_probabilities[1] - (lengths + swapped) / 2).max() < 1e-6
