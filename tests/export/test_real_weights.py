"""Real pretrained weights, where `PREFERENCE_REAL_WEIGHTS` names a folder of checkpoints: a Llama and a Gemma-3.

The script that they are compared with is a stranger's: plain Transformers and PEFT, and none of this project's code.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from preference_core.battles.battle import battle_from_row
from preference_core.battles.encoders import encoder_from_folder
from preference_core.ensemble.loading import load_config
from preference_core.ensemble.member_tokenizer import tokenizer_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.quiet_libraries import quiet_transformers
from preference_export.app import app
from preference_export.gate.onnx_classifier import OnnxClassifier

pytestmark = pytest.mark.slow

REAL_WEIGHTS = "PREFERENCE_REAL_WEIGHTS"
EDGE_ROWS = Path(__file__).parents[1] / "golden" / "edge_battles.jsonl"
LABELS = ("winner_model_a", "winner_model_b", "winner_tie")
#: Folder and template; Gemma's text stands between bos and eos, that of SmolLM2 alone.
CHECKPOINTS = {"smollm2": "qwen", "gemma3": "gemma"}
TEXTS = {
    "qwen": "<User prompt>: {}\n\n<response_a>: {}\n\n<response_b>: {}",
    "gemma": "<prompt>: {}\n\n<response_a>: {}\n\n<response_b>: {}",
}
#: Beyond Gemma-3's window of 512.
MAX_TOKENS = 640
COMPARED_BATTLES = 4
#: Of single precision itself: of one of these battles, Gemma-3's probabilities by Transformers are 9e-6 from those in
#: double precision, and the export's 2e-6.
NOISE = 3e-5
CONFIGURATION = """
name = "real"

[[member]]
name = "real"
base = "{base}"
adapter = "adapter"
template = "{template}"
special_tokens = "template"
max_tokens = {max_tokens}
parity = {{ max_probability_difference = {noise}, max_log_loss_change = {noise} }}

[data]
sample = "battles.csv"
"""


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request):
    folder = Path(os.environ.get(REAL_WEIGHTS, "absent")).resolve() / request.param
    if not folder.is_dir():
        pytest.skip(f"{REAL_WEIGHTS} names no folder that holds `{request.param}`")
    return folder, CHECKPOINTS[request.param]


def run(stage, *options):
    result = CliRunner().invoke(app, [stage, "ensemble.toml", *options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["results"][-1]


def rows_of(path):
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Script:
    """The owner's script."""

    def __init__(self, base, template):
        self.text = TEXTS[template]
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        ends = ("<bos>", "<eos>") if template == "gemma" else ()
        self.special = [[self.tokenizer.convert_tokens_to_ids(token)] for token in ends] or [[], []]

    def ids(self, battle):
        text = self.text.format(*(" ".join(turns) for turns in (battle.prompt, battle.response_a, battle.response_b)))
        before, after = self.special
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return [*before, *ids[: MAX_TOKENS - len(before) - len(after)], *after]

    @torch.inference_mode()
    def logits(self, base, adapter, battles):
        with quiet_transformers():
            plain = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=3, dtype=torch.float32, attn_implementation="eager"
            )
            model = PeftModel.from_pretrained(plain, adapter).eval()
        model.config.pad_token_id = None
        return torch.cat([model(torch.tensor([self.ids(battle)])).logits for battle in battles]).numpy()


def write_adapter(folder, base):
    """LoRA on every linear layer, small beside the weights, and a head; all of it random."""
    with quiet_transformers():
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(plain, settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.03
    model.save_pretrained(folder)


def test_ids_of_pretrained_tokenizers_are_those_of_hugging_face(checkpoint, real_battles):
    folder, template = checkpoint
    member = Classifier(name="m", base="b", template=template, max_tokens=MAX_TOKENS)
    rows = [json.loads(line) for line in EDGE_ROWS.read_text(encoding="utf-8").splitlines()]
    battles = [battle_from_row(row) for row in [*rows, *rows_of(real_battles)]]
    script, encoded = Script(folder, template), tokenizer_of_checkpoint(folder, member).encode_batch(battles)
    assert len(battles) > 1000
    for battle, ours in zip(battles, encoded, strict=True):
        assert ours.ids.tolist() == script.ids(battle)


def test_exported_real_weights_have_the_logits_of_a_plain_script(checkpoint, real_battles, tmp_path, monkeypatch):
    base, template = checkpoint
    monkeypatch.chdir(tmp_path)
    write_adapter(tmp_path / "adapter", base)
    rows = sorted(rows_of(real_battles), key=lambda row: sum(map(len, row.values())))
    rows = [rows[round(step)] for step in np.linspace(0, len(rows) - 1, COMPARED_BATTLES)]
    with Path("battles.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    battles = [battle_from_row(row) for row in rows]
    Path("ensemble.toml").write_text(
        CONFIGURATION.format(base=base, template=template, max_tokens=MAX_TOKENS, noise=NOISE)
    )
    run("onnx")

    expected = Script(base, template).logits(base, tmp_path / "adapter", battles)
    member = load_config(Path("ensemble.toml")).folders.exported("real")
    sequences = [tokens.ids for tokens in encoder_from_folder(member).encode_batch(battles)]
    assert len(sequences[-1]) == MAX_TOKENS
    classifier = OnnxClassifier(member / "model.onnx", threads=0)
    alone = np.concatenate([classifier.logits([ids]) for ids in sequences])
    assert np.abs(alone - expected).max() <= 1e-4
    assert np.abs(classifier.logits(sequences[::-1]) - expected[::-1]).max() <= 1e-4

    probabilities = torch.from_numpy(expected).softmax(-1).tolist()
    with Path("theirs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *LABELS])
        writer.writerows([row["id"], *values] for row, values in zip(rows, probabilities, strict=True))
    found = run("check", "--against", "theirs.csv")
    assert (found["battles"], found["decision_flips"]) == (COMPARED_BATTLES, 0)
    assert found["shortened"] > 0
    assert found["max_probability_difference"] <= NOISE
