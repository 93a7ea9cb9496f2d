"""A run that was killed goes on, and ends with the adapter of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from preference_core.errors import Interrupted, SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_training.fit.adapter import adapter_stage
from preference_training.fit.checkpoints import last_checkpoint
from preference_training.fit.model import base_folder, classifier
from preference_training.fit.parallel import fit_members
from preference_training.fit.recipe import Recipe
from preference_training.fit.trainer import fit

pytestmark = pytest.mark.slow

RECIPE = {
    "rank": 2,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "epochs": 2,
    "dropout": 0.1,
    "swap_probability": 0.5,
    "identity_loss_weight": 1.0,
    "learning_rate": 1e-3,
}


class Killed(BaseException):
    pass


def run(config, member, report, seconds=0.0):
    adapter_stage(config, member).run(
        lambda folder: fit(folder, config, member, report, seconds_between_checkpoints=seconds), resumable=True
    )


def killed_after(last, steps):
    def report(step, total, values):
        steps.append(step)
        if step == last:
            raise Killed

    return report


@pytest.mark.parametrize("last", [3, 6], ids=["in the first epoch", "in the second epoch"])
def test_a_resumed_run_ends_with_the_very_adapter_of_an_uninterrupted_one(generated, last):
    member = replace(generated.members[1], training=RECIPE)
    weights = Path(member.adapter) / "adapter_model.safetensors"
    run(generated, member, lambda *_: None)
    whole = weights.read_bytes()
    weights.unlink()
    steps = []
    with pytest.raises(Killed):
        run(generated, member, killed_after(last, steps))
    assert not weights.exists()
    run(generated, member, killed_after(None, steps))
    assert steps == [*range(1, last + 1), *range(last, 9)]
    assert weights.read_bytes() == whole
    assert not (Path(member.adapter) / "checkpoints").exists()
    assert not (Path(member.adapter) / ".begun").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("jobs", "total"), [(1, 8), (2, 160)])
def test_a_signal_ends_training_with_a_checkpoint_where_the_same_command_goes_on(
    generated, jobs, total, number, capsys, monkeypatch
):
    # Workers go on while the command reads their reports: they need many steps, and the command a short wait.
    monkeypatch.setattr("preference_training.fit.parallel._SECONDS_BETWEEN_REPORTS", 0.02)
    members = [replace(member, training={**RECIPE, "epochs": total // 4}) for member in generated.members[:2]]
    steps = []

    def report(name, step, total, values):
        steps.append((name, step))
        if len(steps) == 1:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner in the background has it ignored
    try:
        with pytest.raises(Interrupted, match=rf"checkpoint after step \d+ of {total} is kept") as caught:
            fit_members(generated, members, jobs, report)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.exit_code == 128 + number
    assert "Ctrl-C again" in capsys.readouterr().err
    first = members[0] if jobs == 1 else next(m for m in members if f"`{m.name}`" in caught.value.message)
    folder = Path(first.adapter)
    (kept,) = folder.parent.glob(f".{folder.name}.part/checkpoints/checkpoint-*")
    again = []
    fit_members(generated, members, jobs, lambda name, step, *_: again.append((name, step)))
    assert min(step for name, step in again if name == first.name) == int(kept.name.rpartition("-")[2]) + 1
    assert all((Path(member.adapter) / "adapter_model.safetensors").is_file() for member in members)


ENDS = {
    "sigterm to the command": (lambda pid: os.kill(pid, signal.SIGTERM), 128 + signal.SIGTERM),
    "sigterm to its group": (lambda pid: os.killpg(pid, signal.SIGTERM), 128 + signal.SIGTERM),
    "the command is killed": (lambda pid: os.kill(pid, signal.SIGKILL), -signal.SIGKILL),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_worker_outlives_the_command(generated, end):
    endless = Path("small.toml").read_text(encoding="utf-8").replace("rank = 4", "rank = 4\nepochs = 100000")
    Path("small.toml").write_text(endless, encoding="utf-8")
    folders = [Path(member.adapter) for member in generated.members]
    parts = [folder.with_name(f".{folder.name}.part") for folder in folders]
    program = "from preference_training.app import main; main()"
    command = [sys.executable, "-c", program, "fit", "small.toml", "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            while not all(part.is_dir() for part in parts):  # Both workers are fitting, and what they need is started.
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            followers = psutil.Process(process.pid).children(recursive=True)
            assert len(followers) >= 3
            act, code = ENDS[end]
            act(process.pid)
            said = process.communicate(timeout=300)[1]
            assert process.returncode == code, said
            assert psutil.wait_procs(followers, timeout=60)[1] == []
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code > 0:
        assert "checkpoint after step" in said
        assert all(list(part.glob("checkpoints/checkpoint-*")) for part in parts)


def test_a_run_of_another_recipe_begins_again(generated):
    member = replace(generated.members[1], training=RECIPE)
    steps = []
    with pytest.raises(Killed):
        run(generated, member, killed_after(4, steps))
    run(generated, replace(member, training={**RECIPE, "rank": 3}), killed_after(None, steps))
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]


def test_early_stopping_goes_on_counting_and_keeps_the_best(generated):
    recipe = {
        **RECIPE,
        "epochs": 4,
        "evaluations_per_epoch": 2,
        "early_stopping_patience": 2,
        "best_metric": "accuracy",
    }
    member = replace(generated.members[1], training=recipe)
    weights = Path(member.adapter) / "adapter_model.safetensors"
    whole, parts = [], []
    run(generated, member, killed_after(None, whole), seconds=1e9)
    uninterrupted = weights.read_bytes()
    weights.unlink()
    with pytest.raises(Killed):
        run(generated, member, killed_after(5, parts), seconds=1e9)
    run(generated, member, killed_after(None, parts), seconds=1e9)
    assert parts == [1, 2, 3, 4, 5, *range(5, whole[-1] + 1)]
    assert weights.read_bytes() == uninterrupted


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in (
        (2, json.dumps({"global_step": 2})),
        (10, json.dumps({"global_step": 10})),
        (12, "{"),
        (14, None),
    ):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_run_that_diverged_is_not_resumed(generated):
    member = replace(generated.members[1], training={**RECIPE, "learning_rate": 1e30, "max_gradient_norm": 1e30})
    with pytest.raises(SystemFailure, match="diverged"):
        run(generated, member, lambda *_: None)
    assert not list(Path(member.adapter).parent.glob(".llama.part/checkpoints/*"))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_every_schedule_trains(generated, tmp_path, schedule):
    member = replace(generated.members[1], training={"schedule": schedule, "batch_size": 16, "label_smoothing": 0.1})
    assert fit(tmp_path / "adapter", generated, member, lambda *_: None)["validation_log_loss"] > 0


def test_a_16_bit_recipe_trains_lora_and_heads_in_32_bits(generated, tmp_path):
    member = replace(generated.members[1], training={"precision": "bf16", "learning_rate": 1e-5, "batch_size": 16})
    with quiet_transformers():
        model = classifier(base_folder(member), member, Recipe(precision="bf16"), 3, identities=4)
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert fit(tmp_path / "adapter", generated, member, lambda *_: None)["validation_log_loss"] > 0


def test_tensorboard_logs_without_tensorboard_are_one_clear_error(generated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    member = replace(generated.members[1], training={"tensorboard": True})
    with pytest.raises(SystemFailure, match="tensorboard is not installed") as caught:
        fit(tmp_path, generated, member, lambda *_: None)
    assert "preference-training[tensorboard]" in caught.value.hint


def test_tensorboard_logs_lie_in_the_adapters_folder(generated, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    member = replace(generated.members[1], training={"tensorboard": True, "batch_size": 2})
    measured = fit(tmp_path / "adapter", generated, member, lambda *_: None)
    assert {path.parent for path in tmp_path.rglob("events.out.tfevents.*")} == {tmp_path / "adapter" / "tensorboard"}
    log = EventAccumulator(str(tmp_path / "adapter" / "tensorboard"))
    log.Reload()
    assert "train/loss" in log.Tags()["scalars"]
    (final,) = log.Scalars("final/validation_log_loss")
    assert final.value == pytest.approx(measured["validation_log_loss"], rel=1e-5)
