"""What a decoder looks like, as values read from a checkpoint's `config.json`.

Families (Gemma-2, Llama, ...) are values of `Family`, which `optimum` reads by common names. A feature that `packed`
does not compute is refused by name, here. It knows nothing of weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError

from preference_core.artefacts.git_lfs import pull_hint
from preference_core.errors import UserError

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True)
class Family:
    """What the configuration of a `model_type` calls what others call otherwise (`names`), and what it does not say.

    `slides`: which layers have the sliding window, if there is one. `rope_by_layer`: layers that slide have rotary
    parameters of their own.
    """

    title: str
    names: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    post_norms: bool = False
    embedding_scaled: bool = False
    query_key_value_bias: bool = False
    query_key_norms: bool = False
    slides: Literal["none", "all", "layer_types"] = "layer_types"
    rope_by_layer: bool = False


FAMILIES = {
    "gemma2": Family(
        "Gemma-2",
        {
            "hidden_act": "hidden_activation",
            "attention_scalar": "query_pre_attn_scalar",
            "attention_soft_cap": "attn_logit_softcapping",
        },
        norm_offset=1.0,
        post_norms=True,
        embedding_scaled=True,
    ),
    "gemma3_text": Family(
        "Gemma-3",
        {"hidden_act": "hidden_activation", "attention_scalar": "query_pre_attn_scalar"},
        norm_offset=1.0,
        post_norms=True,
        embedding_scaled=True,
        query_key_norms=True,
        rope_by_layer=True,
    ),
    "llama": Family("Llama-3", slides="none"),
    "mistral": Family("Mistral", slides="all"),
    "qwen2": Family("Qwen2", query_key_value_bias=True),
    "qwen3": Family("Qwen3", query_key_norms=True),
}
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
#: Counts that a configuration must have.
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
ROPE_TYPES = ("default", "linear", "llama3")
SLIDING = "sliding_attention"
LAYER_KINDS = ("full_attention", SLIDING)


class ArchitectureError(UserError):
    """The checkpoint's architecture, or a feature of it, is not supported."""


#: Elements of one tensor of TensorRT (NVIDIA/TensorRT issues 1948 and 4408).
MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Architecture:
    """A decoder with grouped-query attention, rotary positions, RMSNorm and a gated MLP.

    `norm_offset` is added to RMSNorm weights (Gemma stores them around 0). `post_norms`: Gemma also normalises what
    attention and MLP return. `sliding` says which layers read no more than the last `sliding_window` tokens (None:
    all). `inverse_frequencies` `[head_dim / 2]` already hold any RoPE scaling, in float32; `local_inverse_frequencies`
    are those of layers that slide, where these have their own.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    activation: Activation
    norm_epsilon: float
    norm_offset: float
    post_norms: bool
    attention_scale: float
    attention_soft_cap: float | None
    query_key_value_bias: bool
    query_key_norms: bool
    attention_output_bias: bool
    mlp_bias: bool
    embedding_scale: float
    inverse_frequencies: tuple[float, ...]
    local_inverse_frequencies: tuple[float, ...] | None
    sliding: tuple[bool, ...]
    sliding_window: int | None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer."""
        return tuple(self.sliding_window if slides else None for slides in self.sliding)

    def for_length(self, max_tokens: int) -> "Architecture":
        """The same for sequences of up to `max_tokens` tokens: without a window that hides nothing from these."""
        hides = self.sliding_window is not None and self.sliding_window < max_tokens
        return self if hides else replace(self, sliding_window=None)


def scores_of(heads: int, sequences: int, max_tokens: int, block: int) -> int:
    """Attention scores of `block` queries of each of `sequences`: the largest tensor there is."""
    return sequences * heads * min(block, max_tokens) * max_tokens


def check_scores(heads: int, sequences: int, max_tokens: int, block: int) -> None:
    """Raises where TensorRT could not hold the scores: tensors of 2**31 elements fail to build or to run."""
    scores = scores_of(heads, sequences, max_tokens, block)
    if scores > MOST_ELEMENTS:
        fitting = MOST_ELEMENTS // scores_of(heads, 1, max_tokens, block)
        raise ArchitectureError(
            f"A batch of {sequences} times {max_tokens} tokens has {scores:,} attention scores per block; "
            f"a tensor of TensorRT holds {MOST_ELEMENTS:,}",
            hint=f"Set `serving.max_batch_size` to {fitting} or less, or lower `max_tokens`.",
        )


def hugging_face_config(folder: Path) -> Any:
    """The `transformers` configuration of a checkpoint folder; no code from the checkpoint is ever run."""
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a value of a wrong type fails anywhere in it, with exceptions of any kind
        lines = [line.strip() for line in str(error).strip().split("\n")]
        reason = " ".join(lines if isinstance(error, StrictDataclassError) else lines[:1])
        raise ArchitectureError(f"`{path}` cannot be read: {reason}", pull_hint(path)) from error
    for key in SIZES:
        size = getattr(config, key, 1)
        if isinstance(size, int) and size < 1:
            raise ArchitectureError(f"`{key}` in `{path}` is {size}, expected at least 1")
    padding, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if padding is not None and vocabulary is not None and padding >= vocabulary:
        raise ArchitectureError(
            f"`pad_token_id` in `{path}` is {padding}, and the embedding has {vocabulary} rows",
            hint="Write an id below that, or null: nothing is padded here.",
        )
    return config


def architecture_of(config: Any) -> Architecture:
    """Reads a `transformers` configuration, whether written by transformers 4 or 5. Raises `ArchitectureError`."""
    _refuse_unsupported(config)
    family, named = FAMILIES[config.model_type], _named(config)
    head_dim = getattr(named, "head_dim", named.hidden_size // named.num_attention_heads)
    sliding = _sliding(config)
    kinds = [kind for kind in LAYER_KINDS if (kind == SLIDING) in sliding] if family.rope_by_layer else [None]
    attention_bias = not family.query_key_value_bias and getattr(named, "attention_bias", False)
    return Architecture(
        model_type=config.model_type,
        hidden_size=named.hidden_size,
        intermediate_size=named.intermediate_size,
        layers=named.num_layers,
        heads=named.num_attention_heads,
        key_value_heads=named.num_key_value_heads,
        head_dim=head_dim,
        vocabulary=named.vocab_size,
        activation=ACTIVATIONS[named.hidden_act],
        norm_epsilon=named.rms_norm_eps,
        norm_offset=family.norm_offset,
        post_norms=family.post_norms,
        attention_scale=float(named.attention_scalar if "attention_scalar" in family.names else head_dim) ** -0.5,
        attention_soft_cap=getattr(named, "attention_soft_cap", None),
        query_key_value_bias=family.query_key_value_bias or attention_bias,
        query_key_norms=family.query_key_norms,
        attention_output_bias=attention_bias,
        mlp_bias=getattr(named, "mlp_bias", False),
        embedding_scale=named.hidden_size**0.5 if family.embedding_scaled else 1.0,
        inverse_frequencies=_inverse_frequencies(config, head_dim, kinds[0]),
        local_inverse_frequencies=_inverse_frequencies(config, head_dim, kinds[1]) if len(kinds) > 1 else None,
        sliding=sliding,
        sliding_window=config.sliding_window if any(sliding) else None,
    )


def _named(config: Any) -> Any:
    """`config` read by common names; a value that is absent or null is an `AttributeError`."""
    from optimum.utils.normalized_config import NormalizedTextConfigWithGQA

    return NormalizedTextConfigWithGQA(config, allow_new=True, **FAMILIES[config.model_type].names)


def check_family(model_type: str) -> None:
    """Raises for an architecture that is not supported."""
    if model_type == "gemma3":
        raise ArchitectureError(
            "Architecture `gemma3` reads images as well as text, which is not supported",
            hint="Its text part alone is (`gemma3_text`): save that as a checkpoint, and train on it.",
        )
    if model_type not in FAMILIES:
        raise ArchitectureError(
            f"Architecture `{model_type}` is not supported",
            hint=f"Supported: {', '.join(f'`{kind}` ({family.title})' for kind, family in FAMILIES.items())}.",
        )


def _refuse_unsupported(config: Any) -> None:
    check_family(config.model_type)
    if getattr(config, "auto_map", None):
        raise ArchitectureError(
            "The checkpoint asks to run its own code (`auto_map` in config.json)",
            hint="Remote code is never run. Use the checkpoint's plain `transformers` form.",
        )
    quantisation = getattr(config, "quantization_config", None)
    if quantisation and quantisation.get("quant_method", "bitsandbytes") != "bitsandbytes":
        raise ArchitectureError(
            f"The base is quantised by `{quantisation['quant_method']}` (`quantization_config` in config.json)",
            hint="Only bitsandbytes is read. Name the original, unquantised base; its adapter fits it as well.",
        )
    rope = config.rope_parameters
    if FAMILIES[config.model_type].rope_by_layer:
        for kind in LAYER_KINDS:
            _refuse_rope(rope[kind])
    elif "rope_type" not in rope or any(isinstance(value, dict) for value in rope.values()):
        raise ArchitectureError(
            f"`rope_parameters` in config.json differ by layer ({', '.join(sorted(rope))}), which is not supported",
            hint="Supported is one set with a `rope_type` for all layers.",
        )
    else:
        _refuse_rope(rope)
    if config.model_type == "gemma3_text" and config.attn_logit_softcapping:
        raise ArchitectureError(
            f"`attn_logit_softcapping` in config.json is {config.attn_logit_softcapping}, and Transformers does not "
            "apply it in Gemma-3",
            hint="If the model was trained by Transformers, write null.",
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise ArchitectureError("`use_bidirectional_attention` is not supported")
    activation = getattr(_named(config), "hidden_act", None)
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f"Activation `{activation}` is not supported", hint=f"Supported: {', '.join(ACTIVATIONS)}."
        )


def _refuse_rope(rope: Mapping[str, Any]) -> None:
    if not isinstance(rope["rope_theta"], int | float):
        raise ArchitectureError(f"`rope_theta` in config.json is {rope['rope_theta']!r}, expected a number")
    if rope["rope_type"] not in ROPE_TYPES:
        raise ArchitectureError(
            f"RoPE scaling `{rope['rope_type']}` is not supported", hint=f"Supported: {', '.join(ROPE_TYPES)}."
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ArchitectureError(f"`partial_rotary_factor` is {rope['partial_rotary_factor']}; only 1 is supported")


def _inverse_frequencies(config: Any, head_dim: int, kind: str | None) -> tuple[float, ...]:
    """Rotary frequencies as `transformers` computes them, to the last bit; of layers of one kind where these differ."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters if kind is None else config.rope_parameters[kind]
    if rope["rope_type"] == "default":
        frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    else:
        compute = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
        frequencies, attention_scaling = compute(config, torch.device("cpu"), layer_type=kind)
        assert attention_scaling == 1.0, f"RoPE type {rope['rope_type']} scales attention"
    return tuple(frequencies.tolist())


def _sliding(config: Any) -> tuple[bool, ...]:
    """For each layer, whether it has the sliding window; `transformers` reads `layer_types` in some families only."""
    slides, layers = FAMILIES[config.model_type].slides, int(config.num_hidden_layers)
    if slides != "layer_types":
        return (slides == "all" and config.sliding_window is not None,) * layers
    kinds = config.layer_types[:layers]
    if len(kinds) < layers or not set(kinds) <= set(LAYER_KINDS):
        raise ArchitectureError(
            f"`layer_types` in config.json are {', '.join(kinds)}, for {layers} layers",
            hint=f"Supported is one of {', '.join(LAYER_KINDS)} for each.",
        )
    window = config.sliding_window
    if SLIDING in kinds and (window is None or window < 1):
        raise ArchitectureError(f"`sliding_window` in config.json is {window}, and `layer_types` names {SLIDING}")
    return tuple(kind == SLIDING for kind in kinds)
