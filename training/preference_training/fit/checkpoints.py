"""Checkpoints of a run: saved every few minutes and at Ctrl-C, found again after a kill."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

#: Time between two checkpoints. One costs seconds: LoRA's matrices and twice as much for the optimiser.
SECONDS_BETWEEN_CHECKPOINTS = 600.0


class Checkpoints(TrainerCallback):
    """Asks the Trainer for a checkpoint when the last one is `seconds` old; what is trained does not depend on it.

    When `stop` says so, it asks for a last one, and ends the training.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_CHECKPOINTS, stop: Callable[[], bool] = lambda: False) -> None:
        self.seconds, self.stop = seconds, stop
        self.stopped = False
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._saved_at >= self.seconds:
            control.should_save = True
        if state.global_step < state.max_steps and self.stop():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._saved_at = time.monotonic()


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint in `folder`. The Trainer writes its state last: one without it was cut short."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        try:
            steps[int(json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"])] = path
        except (OSError, ValueError, KeyError):
            continue
    return steps[max(steps)] if steps else None
