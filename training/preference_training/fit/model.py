"""A member's model in training: its base with a score head, LoRA round both, and pooling of the true last token.

Built on Transformers and PEFT. It knows nothing of battles or training loops.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from preference_core.ensemble.settings import Classifier
from preference_core.errors import CheckpointError, ConfigError, SystemFailure, UserError
from preference_training.fit.recipe import Recipe

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def base_folder(member: Classifier) -> Path:
    """The folder of a member's base, fetched if it is on the hub."""
    folder = member.base_location.fetched().folder
    if not (folder / "config.json").is_file():
        raise UserError(f"`{member.base}`, the base of `{member.name}`, is not a checkpoint: it has no config.json")
    return folder


def check_machine(member: Classifier, recipe: Recipe) -> None:
    """Refuses a recipe that this machine cannot run, before long work begins."""
    has_gpu = torch.cuda.is_available()
    if recipe.quantisation != "none" and not (has_gpu and is_bitsandbytes_available()):
        missing = "no version of it that Transformers accepts is installed" if has_gpu else "no GPU was found"
        raise SystemFailure(
            f"The recipe of `{member.name}` quantises its base to {recipe.quantisation}, "
            f"which needs bitsandbytes and an NVIDIA GPU; {missing}",
            hint='Run it on a GPU after `pip install "preference-training[gpu]"`, or set `quantisation = "none"`.',
        )
    if recipe.precision == "fp16" and not has_gpu:
        raise SystemFailure(
            f"The recipe of `{member.name}` trains in fp16, which needs a GPU; no GPU was found",
            hint='Set `precision = "fp32"` or `"bf16"`.',
        )
    if torch.cuda.device_count() > 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible; a member is trained on one",
            hint="Choose it with CUDA_VISIBLE_DEVICES=0; other members can be trained on the others at the same time.",
        )


def lora_settings(recipe: Recipe, layers: int, heads: Sequence[str] = ("score",)) -> LoraConfig:
    """PEFT's settings for a base of `layers` layers: LoRA where the recipe puts it, and heads trained whole."""
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        layers_to_transform=recipe.layers(layers),
        modules_to_save=list(heads),
        bias="none",
    )


def classifier(folder: Path, member: Classifier, recipe: Recipe, labels: int, identities: int = 0) -> PeftModel:
    """The base of `folder`, frozen, with a score head `[labels, hidden]`, and LoRA as the recipe says.

    The head is the base's own where that has so many labels, else a new one: a reward model has one label, say.

    `identities` above 0 adds one more head for both identities, `[2 * identities, hidden]`. Heads are FP32 whatever the
    recipe's precision: steps of 1e-5 would be lost in 16 bits.
    """
    config = AutoConfig.from_pretrained(folder, num_labels=labels)
    base, loaded = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=DTYPES[recipe.precision],
        # Gemma-2 caps its attention scores, which only the plain implementation does.
        attn_implementation="eager" if config.model_type == "gemma2" else "sdpa",
        quantization_config=_quantisation(recipe),
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _check_whole(member, loaded)
    base.config.use_cache = False
    if recipe.quantisation != "none":
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=recipe.gradient_checkpointing)
    elif recipe.gradient_checkpointing:
        base.enable_input_require_grads()
    base.score.float()
    if recipe.zero_head:
        torch.nn.init.zeros_(base.score.weight)
    heads = ["score"]
    if identities:
        base.identity = torch.nn.Linear(config.hidden_size, 2 * identities, bias=False, device=base.score.weight.device)
        base.identity.weight.data.normal_(std=config.initializer_range)
        heads.append("identity")
    model = get_peft_model(base, lora_settings(recipe, config.num_hidden_layers, heads))
    adapter = model.peft_config["default"]
    adapter.base_model_name_or_path, adapter.revision = member.base, member.revision
    return model


def _check_whole(member: Classifier, loaded: Mapping[str, Any]) -> None:
    """Transformers only warns of what it then draws at random. Only the head may be new."""
    odd = [
        f"`{name}` of `{member.base}` has shape {list(stored)}, and its config.json says {list(expected)}"
        for name, stored, expected in sorted(loaded["mismatched_keys"])
        if not name.startswith("score.")
    ]
    odd += [
        f"`{member.base}` has no `{name}`" for name in sorted(loaded["missing_keys"]) if not name.startswith("score.")
    ]
    if odd:
        raise CheckpointError(f"{odd[0]}, and {len(odd) - 1} more" if len(odd) > 1 else odd[0])


def check_ids(model: PeftModel, member: Classifier, sequences: Iterable[npt.NDArray[np.int32]]) -> None:
    """Raises `ConfigError` where a battle has an id without a row in the embedding.

    A GPU would only say that an assertion failed.
    """
    embedding: Any = model.get_input_embeddings()
    rows, largest = embedding.num_embeddings, max((int(ids.max()) for ids in sequences), default=0)
    if largest >= rows:
        raise ConfigError(
            f"`{member.name}`: the tokenizer makes ids up to {largest} of these battles, and `{member.base}` has "
            f"embeddings for {rows} tokens",
            hint="The tokenizer in that folder is another model's, or has tokens that were added to it later.",
        )


def linear_modules(model: PeftModel) -> list[str]:
    """Names of the base's linear layers, adapted or not."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]


def remove_identity_head(model: PeftModel) -> None:
    """Removes the identity head, so that neither the adapter nor its settings mention it."""
    base: Any = model.get_base_model()
    if hasattr(base, "identity"):
        del base.identity
        adapter: Any = model.peft_config["default"]
        adapter.modules_to_save = [name for name in adapter.modules_to_save if name != "identity"]


def pooled_logits(
    model: PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, precision: str
) -> torch.Tensor:
    """Logits `[sequences, labels]` of each sequence's last token."""
    return preference_logits(model, pooled_states(model, input_ids, attention_mask, precision))


def pooled_states(
    model: PeftModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, precision: str
) -> torch.Tensor:
    """The hidden state FP32 `[sequences, hidden]` of each sequence's last token.

    `attention_mask` `[sequences, longest]` says what is padding, on the right. Transformers itself pools the rightmost
    token that is not the pad id: the wrong one when pad is eos and a text ends in eos. Serving pools the true last one.
    GEMMs run in `precision` whatever the weights are: LoRA's are FP32, and so is what surrounds a quantised base. The
    Trainer's own autocast does not reach here: it wraps the model's `forward`, which would pool wrongly.
    """
    base: Any = model.get_base_model()
    with torch.autocast(input_ids.device.type, DTYPES[precision], enabled=precision != "fp32"):
        hidden = base.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    last = attention_mask.sum(dim=1) - 1
    states: torch.Tensor = hidden[torch.arange(len(last), device=hidden.device), last]
    return states.float()


def preference_logits(model: PeftModel, states: torch.Tensor) -> torch.Tensor:
    """Logits FP32 `[sequences, labels]` of pooled states."""
    return _head(model.get_base_model().score, states)


def identity_logits(model: PeftModel, states: torch.Tensor) -> torch.Tensor:
    """Logits FP32 `[sequences, identities, 2]` of pooled states: which model wrote A, and which B."""
    return _head(model.get_base_model().identity, states).view(len(states), -1, 2)


def _head(head: Any, states: torch.Tensor) -> torch.Tensor:
    with torch.autocast(states.device.type, enabled=False):
        logits: torch.Tensor = head(states)
    return logits


def _quantisation(recipe: Recipe) -> Any:
    if recipe.quantisation == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=DTYPES[recipe.precision],
            llm_int8_skip_modules=["score"],
        )
    if recipe.quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["score"])
    return None
