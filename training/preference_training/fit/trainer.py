"""Fine-tunes one member: LoRA and score head, by the Transformers Trainer, saved as a PEFT adapter.

The recipe says how, `model` what is trained, `encoding` on what.
"""

import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from preference_core.battles.tokenisation import BattleTokenizer
from preference_core.ensemble.combination import softmax
from preference_core.ensemble.metrics import accuracy, log_loss
from preference_core.ensemble.settings import Classifier, Config
from preference_core.ensemble.targets import unmatched_targets
from preference_core.errors import ConfigError, Interrupted, SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_training.battles.identities import read_identities
from preference_training.battles.rows import read_labelled
from preference_training.fit.adapter import train_file
from preference_training.fit.battle_order import EpochSampler, Example, TrainingBattles
from preference_training.fit.checkpoints import SECONDS_BETWEEN_CHECKPOINTS, Checkpoints, last_checkpoint
from preference_training.fit.encoding import add_identities, collate, encode, tokenizer_of
from preference_training.fit.model import (
    base_folder,
    check_ids,
    check_machine,
    classifier,
    identity_logits,
    linear_modules,
    pooled_states,
    preference_logits,
    remove_identity_head,
)
from preference_training.fit.probe import STATES_FILE, probe_batches, probe_head, probe_states
from preference_training.fit.recipe import Recipe, recipe_of

#: `report(step, steps, values)`: called after each optimiser step, with the loss and metrics known so far. Batches that
#: a probe reads before the first one count as steps.
Report = Callable[[int, int, Mapping[str, float]], None]


def fit(
    folder: Path,
    config: Config,
    member: Classifier,
    report: Report,
    seconds_between_checkpoints: float = SECONDS_BETWEEN_CHECKPOINTS,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains `member` and writes its adapter into `folder`; returns what was measured.

    Continues from the last checkpoint if a run that was killed left one in `folder`, and ends with the same adapter.
    Raises `SystemFailure` where the machine cannot run the recipe or the loss is no longer finite, and `Interrupted`
    with a checkpoint after the step at which `stop` said so.
    """
    recipe = recipe_of(member)
    check_machine(member, recipe)
    base = base_folder(member)
    tokenizer = tokenizer_of(member, base)
    examples, held_out, identities = _battles(config, recipe, tokenizer)
    torch.manual_seed(recipe.seed)
    with quiet_transformers():
        model = classifier(base, member, recipe, len(config.labels), identities)
    read = (each for example in [*examples, *(held_out or [])] for each in (example, example.get("swapped", example)))
    check_ids(model, member, (example["input_ids"] for example in read))
    _warn(member, unmatched_targets(recipe.target_modules, linear_modules(model)))
    checkpoints, saving = folder / "checkpoints", Checkpoints(seconds_between_checkpoints, stop)
    to_probe = [] if recipe.probe_penalty is None else probe_batches(examples, recipe)
    trainer = MemberTrainer(
        model=model,
        args=_arguments(recipe, checkpoints, len(examples)),
        data_collator=collate,
        train_dataset=TrainingBattles(examples, recipe.swap_probability, recipe.seed),
        eval_dataset=held_out,
        compute_metrics=_metrics,
        callbacks=[
            *_callbacks(folder, member, recipe, held_out, partial(_report_after, len(to_probe), report)),
            saving,
        ],
    )
    trainer.recipe = recipe
    trainer.remove_callback(PrinterCallback)
    resumed = last_checkpoint(checkpoints)
    if to_probe and resumed is None:

        def probed(batch: int) -> None:
            report(batch, len(to_probe) + _steps(recipe, len(examples)), {})
            if stop():
                raise Interrupted(
                    f"The training of `{member.name}` was interrupted; what its probe has read is kept",
                    hint="The same command reads on; members that were done are kept.",
                )

        file = checkpoints / STATES_FILE
        states = probe_states(model, to_probe, recipe, file, seconds_between_checkpoints, probed)
        probe_head(model, states, to_probe, recipe)
    with quiet_transformers():
        result = trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if saving.stopped:
            step, steps = trainer.state.global_step, trainer.state.max_steps
            raise Interrupted(
                f"The training of `{member.name}` was interrupted; a checkpoint after step {step} of {steps} is kept",
                hint="The same command continues there; members that were done are kept.",
            )
        trainer.remove_callback(TensorBoardCallback)  # it has closed its log, and would begin another one
        measured = {"train_loss": result.training_loss, **_final(trainer, held_out)}
    if recipe.tensorboard:
        _log_final(_summary_writer(member, folder / "tensorboard"), measured, result.global_step)
    # The Trainer leaves losses that are not finite out of the mean that it reports: the weights tell, too.
    trained = (bool(parameter.isfinite().all()) for parameter in model.parameters() if parameter.requires_grad)
    if not all(map(math.isfinite, measured.values())) or not all(trained):
        shutil.rmtree(checkpoints, ignore_errors=True)
        raise SystemFailure(
            f"The training of `{member.name}` diverged: {measured}", hint="Lower `learning_rate`, or train in bf16."
        )
    remove_identity_head(model)
    zero = [name for name, parameter in model.named_parameters() if "lora_B" in name and not parameter.any()]
    if zero:
        _warn(member, [f"training left `lora_B` of {len(zero)} modules at zero, the first is `{zero[0]}`"])
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form
    shutil.rmtree(checkpoints, ignore_errors=True)
    trainable, total = model.get_nb_trainable_parameters()
    return {"trainable_parameters": trainable, "parameters": total, **measured}


def _report_after(before: int, report: Report, step: int, steps: int, values: Mapping[str, float]) -> None:
    """Reports a step after `before` batches of a probe."""
    report(before + step, before + steps, values)


def _warn(member: Classifier, doubts: Sequence[str]) -> None:
    for doubt in doubts:
        sys.stderr.write(f"warning: `{member.name}`: {doubt}\n")


def _battles(
    config: Config, recipe: Recipe, tokenizer: BattleTokenizer
) -> tuple[list[Example], list[Example] | None, int]:
    """Examples to train on, those held out, and the number of models that the identity heads tell apart."""
    path = Path(train_file(config))
    examples = encode(tokenizer, read_labelled(path, config.labels), config.labels, swaps=recipe.swap_probability > 0)
    identities = read_identities(path) if recipe.identity_loss_weight else None
    if identities is not None:
        add_identities(examples, identities)
    held_out = None
    if config.data.validation:
        held_out = encode(tokenizer, read_labelled(Path(config.data.validation), config.labels), config.labels, False)
    return examples, held_out, len(identities.names) if identities else 0


class MemberTrainer(Trainer):
    """The Trainer, with the loss of the true last token of each sequence."""

    recipe = Recipe()
    loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy over the labels; smoothed while training only, so that held-out losses stay comparable.

        In training the identity heads add theirs, by the recipe's weight.
        """
        states = pooled_states(model, inputs["input_ids"], inputs["attention_mask"], self.recipe.precision)
        logits = preference_logits(model, states)
        smoothing = self.recipe.label_smoothing if model.training else 0.0
        loss = cross_entropy(logits, inputs["labels"], label_smoothing=smoothing)
        if model.training and "identities" in inputs:
            # The mean over both heads of all sequences, twice: the sum of two losses.
            identity_loss = 2 * cross_entropy(identity_logits(model, states), inputs["identities"])
            loss = loss + self.recipe.identity_loss_weight * identity_loss
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        """The order of this project: it depends on seed and epoch alone, so that a run can be resumed."""
        battles: Any = self.train_dataset
        group_size = self.recipe.batch_size * self.recipe.gradient_accumulation_steps
        return EpochSampler(battles, group_size if self.recipe.group_by_length else None)


class _Reporter(TrainerCallback):
    """Passes progress on, instead of the Trainer's own bar and printed dictionaries."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.values: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, **now: Any) -> None:
        logs: Mapping[str, float] = now["logs"]
        self.values |= {key.removeprefix("eval_"): logs[key] for key in ("loss", "eval_log_loss") if key in logs}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.report(state.global_step, state.max_steps, self.values)


def _steps_per_epoch(recipe: Recipe, examples: int) -> int:
    return math.ceil(examples / (recipe.batch_size * recipe.gradient_accumulation_steps))


def _steps(recipe: Recipe, examples: int) -> int:
    return math.ceil(recipe.epochs * _steps_per_epoch(recipe, examples))


def _arguments(recipe: Recipe, output: Path, examples: int) -> TrainingArguments:
    steps_per_epoch = _steps_per_epoch(recipe, examples)
    evaluates = recipe.evaluations_per_epoch > 0
    interval = math.ceil(steps_per_epoch / recipe.evaluations_per_epoch) if evaluates else None
    keeps_best = recipe.early_stopping_patience is not None
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.evaluation_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_ratio,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_gradient_norm,
        seed=recipe.seed,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        activation_checkpointing=recipe.gradient_checkpointing,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=interval,
        label_names=["labels"],
        save_strategy="steps" if keeps_best else "no",
        save_steps=interval or 500,
        save_total_limit=1,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=keeps_best,
        metric_for_best_model=recipe.best_metric if keeps_best else None,
        greater_is_better=recipe.best_metric == "accuracy",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _callbacks(
    folder: Path, member: Classifier, recipe: Recipe, held_out: list[Example] | None, report: Report
) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [_Reporter(report)]
    if held_out is None and recipe.evaluations_per_epoch:
        raise ConfigError(f"The recipe of `{member.name}` evaluates while training, which needs `data.validation`")
    if recipe.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    if recipe.tensorboard:
        callbacks.append(TensorBoardCallback(_summary_writer(member, folder / "tensorboard")))
    return callbacks


def _summary_writer(member: Classifier, folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemFailure(
            f"The recipe of `{member.name}` writes TensorBoard logs, and tensorboard is not installed",
            hint='Run `pip install "preference-training[tensorboard]"`, or set `tensorboard = false`.',
        ) from error
    return SummaryWriter(log_dir=str(folder))


def _log_final(writer: Any, measured: Mapping[str, float], step: int) -> None:
    """Adds what was measured at the end to the TensorBoard log."""
    with writer:
        for name, value in measured.items():
            writer.add_scalar(f"final/{name}", value, step)


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    if not np.isfinite(prediction.predictions).all():
        return {"log_loss": math.inf, "accuracy": 0.0}
    probabilities = softmax(np.asarray(prediction.predictions, dtype=np.float64))
    targets = np.asarray(prediction.label_ids)
    return {"log_loss": log_loss(probabilities, targets), "accuracy": accuracy(probabilities, targets)}


def _final(trainer: Trainer, held_out: list[Example] | None) -> dict[str, float]:
    if held_out is None:
        return {}
    metrics = trainer.evaluate()
    return {"validation_log_loss": metrics["eval_log_loss"], "validation_accuracy": metrics["eval_accuracy"]}
