"""The exception tree: every error that a user may see, and how it is printed.

It knows nothing of where errors come from. Commands print `describe(error)` and exit with `error.exit_code`.

    PreferenceError
    +- UserError                  the user's mistake: exit code 2
    |  +- ConfigError
    |  +- BattleError
    |  +- RefusedError
    |  +- CombinationError
    |  +- ArtefactError
    |  +- ParityError             exit code 3: it was made, and is too far from the original
    |  +- ArchitectureError       preference_export.checkpoint.architecture
    |  +- CheckpointError
    |  +- AdapterError            preference_export.checkpoint.adapter
    |  +- HeadError               preference_export.checkpoint.merge
    |  +- CannotCheckError        preference_export.gate.check
    |  +- RequestError            preference_embedded.batching
    +- SystemFailure              the machine's, the server's or the file system's: exit code 1
       +- NonFiniteLogitsError
       +- ServerError
       |  +- StartCrash           preference_embedded.launcher
       |  +- UnavailableError
       |  +- DeadlineError
       +- ScoringError
       |  +- PassingError
       +- Interrupted              Ctrl-C: exit code 130; SIGTERM: 143
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

#: What Transformers, PEFT, Triton and others call the keys of a configuration.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "adapter": ("lora", "peft", "adapter_path", "adapters", "lora_path", "checkpoint"),
    "alpha": ("lora_alpha",),
    "base": ("model", "model_name", "base_model", "base_model_name_or_path", "model_id", "path"),
    "batch_size": ("per_device_train_batch_size", "train_batch_size", "bs"),
    "dropout": ("lora_dropout",),
    "engine": ("backend", "runtime"),
    "epochs": ("num_train_epochs", "num_epochs"),
    "evaluation_batch_size": ("per_device_eval_batch_size", "eval_batch_size"),
    "gpus": ("device", "devices", "gpu", "cuda", "device_map"),
    "head_labels": ("id2label", "label2id"),
    "instances": ("instance_group", "count", "replicas"),
    "labels": ("classes", "num_labels"),
    "learning_rate": ("lr",),
    "max_gradient_norm": ("max_grad_norm", "grad_clip", "clip_grad_norm"),
    "max_tokens": ("max_length", "max_len", "max_seq_length", "max_seq_len", "model_max_length"),
    "member": ("members", "models"),
    "precision": ("dtype", "torch_dtype", "bf16", "fp16"),
    "quantisation": ("quantization", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type"),
    "rank": ("r", "lora_r", "lora_rank"),
    "sample": ("calibration", "calibration_data"),
    "schedule": ("lr_scheduler_type", "scheduler"),
    "seed": ("random_state",),
    "template": ("prompt_template", "chat_template", "format"),
    "test": ("eval", "evaluation"),
    "truncation": ("truncation_side",),
    "validation": ("val", "valid", "dev"),
    "warmup_ratio": ("warmup_steps", "warmup"),
    "weights": ("weight", "ratios"),
}


class PreferenceError(Exception):
    """Base of every error this project raises on purpose.

    `message` says what failed, the value, and what was expected; `hint` says how to fix it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(PreferenceError):
    """Something the user gave is wrong: exit code 2, no traceback."""

    exit_code = 2


class SystemFailure(PreferenceError):
    """The machine, the server or a file system failed: exit code 1."""


class ConfigError(UserError):
    """A configuration file is unreadable, incomplete or contradicts itself."""


class BattleError(UserError):
    """A battle cannot be scored as it is. `field` names the offending field."""

    def __init__(self, field: str, message: str, hint: str | None = None) -> None:
        super().__init__(f"`{field}` {message}", hint)
        self.field = field


class RefusedError(UserError):
    """The server refused one request as invalid. Other requests are not affected."""


class CombinationError(UserError):
    """Weights, temperatures or multipliers are not usable."""


class NonFiniteLogitsError(SystemFailure):
    """A member returned NaN or infinity: its engine is broken, so nothing is averaged."""


class ArtefactError(UserError):
    """An artefact is missing, was changed, or is not what its manifest says."""


class CheckpointError(UserError):
    """A checkpoint is missing, unreadable, or not what it must be."""


class ParityError(UserError):
    """An artefact does not reproduce the original model within its limits: exit code 3."""

    exit_code = 3


class ServerError(SystemFailure):
    """The inference server could not start, or does not answer."""


class UnavailableError(ServerError):
    """The server is down, restarting or overloaded: the same request may succeed later."""


class DeadlineError(ServerError):
    """The server did not answer within the time that one request may take."""


class ScoringError(SystemFailure):
    """The server failed at one battle, or gave an answer that is not a prediction. Other battles are not affected."""


class PassingError(ScoringError):
    """The server failed at one battle in a way that may pass: it is worth one more request."""


class Interrupted(SystemFailure):
    """A signal ended the command; the hint says what is kept."""

    exit_code = 130


def describe(error: PreferenceError) -> str:
    """The text a command prints on stderr: one `error:` line and at most one `hint:` line."""
    lines = [f"error: {escape_control_characters(error.message)}"]
    if error.hint:
        lines.append(f"hint: {escape_control_characters(error.hint)}")
    return "\n".join(lines)


def escape_control_characters(text: str) -> str:
    """`text` with everything unprintable escaped, so that input cannot forge log lines or move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, characters: int = 60) -> str:
    """At most so many characters of `text`, for messages: `...` stands for what was cut."""
    return text if len(text) <= characters else f"{text[: characters - 3]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence naming what `name` was probably meant to be, else what is known."""
    known = sorted(known)
    close = [key for key in known if name.casefold() in OTHER_NAMES.get(key, ())]
    close = close or get_close_matches(name.casefold(), known, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Known: {', '.join(f'`{k}`' for k in known)}." if known else "Nothing is allowed here."
