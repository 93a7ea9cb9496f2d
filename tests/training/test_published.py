"""The committed configurations: whose bases they train, and that their commands run in the documented order."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from preference_core.ensemble.loading import load_config, read_config_file
from preference_core.files.rows import read_rows
from preference_training.battles.rows import read_battles
from preference_training.evaluation import predict
from preference_training.evaluation.predictions import Predictions, write_predictions
from preference_training.fit import model, parallel
from preference_training.synthetic.battles import generate
from preference_training.synthetic.generate import generation_of, has_ties
from preference_training.synthetic.write import write_battles

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PUBLISHED = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem not in ("demo", "real"))


def documented_commands():
    """The arguments of each `preference-train` in the commands that docs/systems.md calls real."""
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    block = re.search(r"\*\*Real\*\*.*?\n\n((?: {4}.*\n)+)", text).group(1)
    lines = [line.partition("#")[0].split() for line in block.splitlines()]
    return [line[1:] for line in lines if line[0] == "preference-train"]


def predictions_of(config, battles, members, *_):
    """Predictions as if the members had been asked."""
    random = np.random.default_rng(0)
    by_member = {member.name: random.dirichlet([2] * len(config.labels), len(battles)) for member in members}
    return Predictions(tuple(battles), np.mean(list(by_member.values()), axis=0), by_member, {})


@pytest.fixture(params=PUBLISHED)
def published(request, tmp_path, monkeypatch):
    """A fresh working directory with the configurations, and battles where one of them says that the user's are.

    What needs checkpoints or a GPU has a stand-in.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    path = Path("configs") / f"{request.param}.toml"
    config = load_config(path, include_may_be_missing=True)
    split = generation_of(config).split
    files = [split.source] if split else [config.data.train, config.data.validation, config.data.test]
    for seed, file in enumerate(files):
        Path(file).parent.mkdir(exist_ok=True)
        written = Path(file).with_suffix(".csv")
        write_battles(written, generate(300, seed, "train", has_ties(config)), has_ties(config))
        if Path(file).suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(read_rows(written))), file)
    monkeypatch.setattr(model, "check_machine", lambda *_: None)
    monkeypatch.setattr(parallel, "fit_members", lambda *_: {})
    monkeypatch.setattr(predict, "predict", predictions_of)
    return path


def test_the_documented_commands_run_in_their_order_from_a_fresh_folder(published, train):
    commands = documented_commands()
    assert [arguments[0] for arguments in commands] == ["parameters", "split", "fit", "predict", "weights", "evaluate"]
    left_out = set()
    if generation_of(load_config(published, include_may_be_missing=True)).split is None:
        left_out |= {"split"}
    if read_config_file(published).included is None:
        left_out |= {"predict", "weights"}
    for command, *arguments in commands:
        if command == "evaluate":  # what the server would have answered
            config = load_config(published)
            answered = predictions_of(config, read_battles(Path(config.data.test)), config.members)
            for name in ("predictions.csv", "predictions_symmetric.csv"):
                write_predictions(Path(name), answered, config.labels)
        if command not in left_out:
            result = train(command, *(argument.replace("CONFIG", published.stem) for argument in arguments))
            assert result.exit_code == 0, result.stderr
    assert Path("report.html").is_file()


def test_the_light_ensemble_is_trained_from_the_bases_that_were_published():
    bases = [member.base for member in load_config(ROOT / "configs" / "light.toml").members]
    assert bases == ["google/gemma-2-2b", "meta-llama/Llama-3.2-3B"]
