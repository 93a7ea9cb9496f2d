"""How one member is fine-tuned: the table `[member.training]`, with a default and a check for every key.

Says nothing of how it is done; see `model` and `fit`.
"""

from dataclasses import dataclass
from typing import Literal

from preference_core.ensemble.settings import Classifier
from preference_core.errors import ConfigError
from preference_core.structure import structure


@dataclass(frozen=True)
class Recipe:
    """LoRA on a frozen base, and a score head.

    `first_layer` and `last_layer` (counted from 0, both included) bound the layers that get LoRA; the default is all.
    `target_modules` are PEFT's names of the linear layers. `warmup_ratio` is a share of all steps.
    `swap_probability` is how often a battle is shown with its responses exchanged. The held-out battles are always
    evaluated at the end, and `evaluations_per_epoch` times in each epoch. `early_stopping_patience` counts evaluations
    without improvement of `best_metric`, and keeps the best state; without it the last state is kept.
    `identity_loss_weight` above 0 adds two heads that tell which model wrote each response, and only train: the loss is
    that of the preference, and this weight times that of each identity.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    first_layer: int | None = None
    last_layer: int | None = None
    learning_rate: float = 1e-4
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    epochs: float = 1.0
    warmup_ratio: float = 0.1
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    label_smoothing: float = 0.0
    group_by_length: bool = True
    swap_probability: float = 0.0
    identity_loss_weight: float = 0.0
    seed: int = 42
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    quantisation: Literal["none", "nf4", "int8"] = "none"
    gradient_checkpointing: bool = False
    evaluation_batch_size: int = 16
    evaluations_per_epoch: int = 0
    early_stopping_patience: int | None = None
    best_metric: Literal["log_loss", "accuracy"] = "log_loss"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for key in ("rank", "batch_size", "gradient_accumulation_steps", "evaluation_batch_size"):
            self._check(key, getattr(self, key) >= 1, "at least 1")
        for key in ("alpha", "learning_rate", "epochs", "max_gradient_norm"):
            self._check(key, getattr(self, key) > 0, "more than 0")
        for key in ("dropout", "warmup_ratio", "label_smoothing"):
            self._check(key, 0 <= getattr(self, key) < 1, "0 or more, and less than 1")
        self._check("swap_probability", 0 <= self.swap_probability <= 1, "0 to 1")
        for key in ("weight_decay", "identity_loss_weight"):
            self._check(key, getattr(self, key) >= 0, "0 or more")
        self._check("seed", 0 <= self.seed < 2**32, f"0 to {2**32 - 1}")
        self._check("target_modules", len(self.target_modules) > 0, "at least one")
        self._check("evaluations_per_epoch", self.evaluations_per_epoch >= 0, "0 or more")
        if self.early_stopping_patience is not None:
            self._check("evaluations_per_epoch", self.evaluations_per_epoch >= 1, "at least 1 to stop early")
            self._check("early_stopping_patience", self.early_stopping_patience >= 1, "at least 1")
        if self.first_layer is not None:
            self._check("first_layer", self.first_layer >= 0, "0 or more")
            if self.last_layer is not None:
                self._check("last_layer", self.last_layer >= self.first_layer, f"at least {self.first_layer}")

    def _check(self, key: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"`{key}` is {getattr(self, key)}, expected {expected}")

    def layers(self, count: int) -> list[int] | None:
        """The layers that get LoRA in a model of `count` layers; None for all of them."""
        if self.first_layer is None and self.last_layer is None:
            return None
        first, last = self.first_layer or 0, count - 1 if self.last_layer is None else self.last_layer
        if first > last or last >= count:
            raise ConfigError(f"Layers {first} to {last} should get LoRA; the base has layers 0 to {count - 1}")
        return list(range(first, last + 1))


def recipe_of(member: Classifier) -> Recipe:
    """The checked table `[member.training]`."""
    return structure(Recipe, member.training, f"member.{member.name}.training")
