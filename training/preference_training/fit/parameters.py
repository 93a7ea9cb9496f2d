"""Counts what a recipe trains, on the meta device: the real shapes, and not one weight.

What is counted is what PEFT prints (`print_trainable_parameters`). Trainable: LoRA's matrices and one copy of the score
head. All: those, the frozen base without its language-model head, and the frozen copy of the score head that PEFT
keeps beside the trained one (`modules_to_save`). Identity heads, which only train, are left out.
"""

from dataclasses import dataclass

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from preference_core.ensemble.settings import Classifier
from preference_core.quiet_libraries import quiet_transformers
from preference_training.fit.base_shape import shape_of
from preference_training.fit.model import lora_settings
from preference_training.fit.recipe import recipe_of


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one member as it is trained: those that change, and all of them."""

    member: str
    trainable: int
    total: int


def count_parameters(member: Classifier, labels: int) -> ParameterCount:
    """The exact counts for a classifier of `labels` labels; needs the base's shape only.

    A quantised base has as many parameters as one that is not, so `quantisation` changes nothing here.
    """
    shape = dict(shape_of(member))
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    config.num_labels = labels
    with quiet_transformers(), torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config)
        model = get_peft_model(base, lora_settings(recipe_of(member), config.num_hidden_layers))
    trainable, total = model.get_nb_trainable_parameters()
    return ParameterCount(member.name, trainable, total)
