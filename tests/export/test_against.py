"""`check --against`: what a training script of one's own predicted is compared by id, and the usual causes are found.

The script is a stranger's: plain Transformers and PEFT, and none of this project's code.
"""

import csv
import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from preference_core.quiet_libraries import quiet_transformers
from preference_export.app import app

pytestmark = pytest.mark.slow

LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
GEMMA = "<prompt>: {}\n\n<response_a>: {}\n\n<response_b>: {}"
LLAMA = "User prompt: {}\n\nModel A :\n{}\n\n--------\n\nModel B:\n{}"
#: Turns of the prompt and of both answers; all but one battle have more than 48 tokens.
BATTLES = {
    "4294967296": (["Why?"], ["Because."], ["No idea."]),
    "two": (["Say hi", "again"], ["hi", "HI"], ["Hello", "there"]),
    "3": (["2 + 2"], ["4"], ["5, I think"]),
    "four": (["sea"], ["Waves."], ["The sea"]),
    "long": (["Tell me of the sea " * 9], ["Waves are what you see. " * 3], ["The sea is very wide. " * 8]),
    "longer": (["Why is the sky blue? " * 2], ["Because of it. " * 11], ["It is not, I am told. " * 13]),
}


class Script:
    """The owner's script; what a test changes in it are its attributes."""

    text = GEMMA
    separator = " "
    bos, eos = True, True
    max_tokens = 48
    side = "right"
    eos_is_cut = False
    columns = LABELS
    swapped = (False,)

    def __init__(self, project, **changes):
        self.__dict__.update(changes)
        self.tokenizer = AutoTokenizer.from_pretrained(project.folder / "base", truncation_side=self.side)
        with quiet_transformers():
            base = AutoModelForSequenceClassification.from_pretrained(
                project.folder / "base", num_labels=3, dtype=torch.float32, attn_implementation="eager"
            )
            self.model = PeftModel.from_pretrained(base, project.folder / "adapter").eval()
        self.model.config.pad_token_id = None

    def ids(self, prompt, response_a, response_b):
        text = self.text.format(*(self.separator.join(turns) for turns in (prompt, response_a, response_b)))
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        special = (["<bos>"] * self.bos, ["<eos>"] * self.eos)
        before, after = (self.tokenizer.convert_tokens_to_ids(tokens) for tokens in special)
        if self.eos_is_cut:
            return [*before, *ids, *after][: self.max_tokens]
        room = self.max_tokens - len(before) - len(after)
        return [*before, *(ids[-room:] if self.side == "left" else ids[:room]), *after]

    @torch.inference_mode()
    def probabilities(self, prompt, response_a, response_b):
        rows = []
        for swapped in self.swapped:
            answers = (response_b, response_a) if swapped else (response_a, response_b)
            row = self.model(torch.tensor([self.ids(prompt, *answers)])).logits[0].softmax(-1)
            rows.append(row[[1, 0, 2]] if swapped and len(self.swapped) > 1 else row)
        return torch.stack(rows).mean(0).tolist()

    def write(self, path):
        """A file of predictions in another order than that of the battles, with six digits."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *self.columns])
            for identity, battle in reversed(BATTLES.items()):
                writer.writerow([identity, *(f"{value:.6f}" for value in self.probabilities(*battle))])


@pytest.fixture
def against(project):
    """Runs the command on the predictions of a script; returns exit code, what it found, and stderr."""
    with (project.folder / "own_battles.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "response_a", "response_b"])
        writer.writerows([identity, *map(json.dumps, battle)] for identity, battle in BATTLES.items())

    def run(*options, **changes):
        Script(project, **changes).write(project.folder / "own.csv")
        names = ["--against", "own.csv", "--battles", "own_battles.csv", "--json", *options]
        result = CliRunner().invoke(app, ["check", "ensemble.toml", *names], catch_exceptions=False)
        return result.exit_code, json.loads(result.stdout)["results"][-1], result.stderr

    return run


def test_predictions_of_the_same_reading_agree(against):
    code, found, stderr = against()
    assert (code, found["battles"], found["shortened"], found["broken"], stderr) == (0, 6, 5, [], "")
    assert found["max_probability_difference"] < 2e-6


def test_one_member_may_be_compared_alone(against):
    assert against("--member", "gemma")[0] == 0


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"bos": False}, "add_bos = false, add_eos = true"),
        ({"eos": False}, "add_bos = true, add_eos = false"),
        ({"text": LLAMA, "eos": False}, 'template = "llama"'),
        ({"text": LLAMA, "bos": False, "eos": False}, r"User prompt: {prompt}\n\nModel A :"),
        ({"columns": (LABELS[2], LABELS[0], LABELS[1])}, f'labels = ["{LABELS[2]}", "{LABELS[0]}", "{LABELS[1]}"]'),
        ({"columns": (LABELS[1], LABELS[0], LABELS[2])}, f'labels = ["{LABELS[1]}", "{LABELS[0]}", "{LABELS[2]}"]'),
        ({"side": "left"}, 'truncation = { policy = "left" }'),
        ({"max_tokens": 49}, "max_tokens = 49"),
        ({"eos_is_cut": True}, "add_bos = true, add_eos = false"),
        ({"separator": "\n"}, r'turn_separator = "\n"'),
        ({"swapped": (True,)}, "the responses stand in the other order in the text"),
        ({"swapped": (False, True)}, "averages both orders"),
        ({"bos": False, "side": "left"}, "add_bos = false"),
    ],
    ids=str,
)
def test_another_reading_is_caught_and_named(against, changes, cause):
    code, found, stderr = against(**changes)
    assert code == 3
    assert found["max_probability_difference"] > 1e-4
    assert "max_probability_difference is" in found["broken"][0]
    assert cause in found["cause"]
    assert stderr == f"hint: {found['cause']}\n"


def test_what_no_trial_explains_says_so(against):
    code, found, stderr = against(text="{} | {} | {}")
    assert (code, found.get("cause")) == (3, None)
    assert "None of the usual causes" in stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("winner_tie", "winner_tied"), "there is no column `winner_tie`"),
        (("four,", "five,"), "has the id `five`, which `own_battles.csv` lacks"),
        (("two,0.", "two,2."), "do not sum to 1"),
        (("two,0.", "3,0."), "the id `3` is repeated"),
    ],
)
def test_a_file_that_is_no_predictions_of_these_battles_is_refused(against, project, change, message):
    assert against()[0] == 0
    path = project.folder / "own.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(Exception, match=message):
        CliRunner().invoke(
            app,
            ["check", "ensemble.toml", "--against", "own.csv", "--battles", "own_battles.csv"],
            catch_exceptions=False,
        )


def test_columns_of_a_submission_fit_labels_that_are_called_otherwise(against, project):
    project.edit('name = "tiny"', 'name = "tiny"\nlabels = ["a", "b", "tie"]')
    project.run("all")
    assert against()[0] == 0
    assert against(columns=("a", "b", "tie"))[0] == 0


def test_an_export_shows_one_battle_as_the_member_reads_it(project):
    (example,) = (result["example"] for result in project.run("check")["results"])
    assert example["text"].startswith("<prompt>: ")
    assert example["first"][0] == [1, "<bos>"]
    assert example["last"][-1] == [2, "<eos>"]
    assert len(example["first"]) == len(example["last"]) == 4
