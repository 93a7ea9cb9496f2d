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
    """LoRA on a frozen base, and a score head."""

    rank: int = 16  #: of LoRA's matrices
    alpha: int = 32  #: LoRA's scale is alpha / rank
    dropout: float = 0.0  #: share of LoRA's inputs that are left out
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  #: PEFT's names of the linear layers
    first_layer: int | None = None  #: the first layer that gets LoRA, from 0; else all
    last_layer: int | None = None  #: the last one, itself included
    #: whether the score head starts at zero, where all labels are equally likely, instead of at random
    zero_head: bool = False
    #: starts the score head as a logistic regression on the states of the base before training, with this penalty on
    #: the squares of its weights
    probe_penalty: float | None = None
    learning_rate: float = 1e-4  #: at its highest
    batch_size: int = 8  #: battles in one pass
    gradient_accumulation_steps: int = 1  #: passes in one step
    epochs: float = 1.0  #: passes through the battles
    warmup_ratio: float = 0.1  #: share of all steps in which the learning rate rises
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"  #: how the learning rate falls afterwards
    weight_decay: float = 0.01  #: of AdamW
    max_gradient_norm: float = 1.0  #: gradients are clipped to it
    label_smoothing: float = 0.0  #: share of a label that is spread over all, in training only
    group_by_length: bool = True  #: batches of battles of like length
    swap_probability: float = 0.0  #: how often a battle is shown with its responses exchanged
    #: above 0 adds two heads that tell which model wrote each response; they only train, and their losses count this
    #: much
    identity_loss_weight: float = 0.0
    seed: int = 42  #: of everything that is drawn
    #: of the base and its products; `fp16` needs a GPU; LoRA and heads are always FP32
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    quantisation: Literal["none", "nf4", "int8"] = "none"  #: of the base while training; needs bitsandbytes and a GPU
    gradient_checkpointing: bool = False  #: less memory for more time
    evaluation_batch_size: int = 16  #: battles in one pass of an evaluation, or of a probe
    evaluations_per_epoch: int = 0  #: on `data.validation`, besides the one at the end
    #: evaluations without improvement of `best_metric` that stop the training; the best state is kept, else the last
    early_stopping_patience: int | None = None
    best_metric: Literal["log_loss", "accuracy"] = "log_loss"  #: what early stopping goes by
    tensorboard: bool = False  #: writes logs into the adapter's folder

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
        if self.probe_penalty is not None:
            self._check("probe_penalty", self.probe_penalty > 0, "more than 0")
            self._check("zero_head", not self.zero_head, "false: `probe_penalty` says where the head starts")
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
