"""Tiny bases: randomly initialised checkpoints of the published architectures, as Hugging Face writes them.

A base is a causal language model with its own tokenizer, as the published bases are: no score head. It knows nothing of
battles; tokenizers are trained on whatever text is given. Torch is imported only once a base has to be written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preference_core.ensemble.published import llama3_rope, rope
from preference_core.errors import ConfigError
from preference_training.synthetic.tiny_tokenizer import Family, TinyTokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Positions that Llama-3.1's rotary frequencies were stretched from, scaled down with the models.
ORIGINAL_POSITIONS = 1024


@dataclass(frozen=True)
class TinyBase:
    """Shape of one random base."""

    architecture: Family  #: whose configuration it has
    hidden_size: int = 192  #: features of the residual stream
    intermediate_size: int = 576  #: features of the MLP
    layers: int = 3  #: decoder layers
    heads: int = 4  #: query heads
    key_value_heads: int = 2  #: divides `heads`
    head_dim: int = 48  #: features of a head; even
    vocabulary_size: int = 4096  #: of the tokenizer that is trained on the battles
    max_positions: int = 8192  #: longest sequence, in tokens
    sliding_window: int = 4096  #: in tokens, for Gemma and Mistral
    initializer_std: float = 0.02  #: of the random weights
    stretched_rope: bool = True  #: Llama only: the rotary frequencies of 3.1 and later, else those of 3.0
    seed: int = 42  #: of the weights

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise ConfigError(f"`head_dim` is {self.head_dim}, expected an even number")
        if self.heads % self.key_value_heads:
            raise ConfigError(
                f"`heads` is {self.heads}, expected a multiple of `key_value_heads` {self.key_value_heads}"
            )


def write_base(folder: Path, base: TinyBase, texts: Iterable[str]) -> dict[str, Any]:
    """Trains a tokenizer on `texts`, initialises a model, and writes both into `folder` as one checkpoint.

    Returns the number of parameters and of vocabulary entries in use.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from preference_core.quiet_libraries import quiet_transformers

    tokenizer = train_tokenizer(base.architecture, texts, base.vocabulary_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(base.seed)
        model = AutoModelForCausalLM.from_config(model_config(base, tokenizer), dtype=torch.float32)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save(folder)
    return {"parameters": model.num_parameters(), "vocabulary": tokenizer.tokenizer.get_vocab_size()}


def model_config(base: TinyBase, tokenizer: TinyTokenizer) -> "PretrainedConfig":
    """The architecture's configuration, shaped as `base` says."""
    from transformers import AutoConfig

    gemma = {
        "query_pre_attn_scalar": base.head_dim,
        "sliding_window": base.sliding_window,
        "head_dim": base.head_dim,
    }
    llama = llama3_rope(8.0, ORIGINAL_POSITIONS) if base.stretched_rope else rope(500_000.0)
    qwen = rope(1_000_000.0)
    family: dict[str, dict[str, Any]] = {
        "gemma2": gemma,
        # Every sixth layer sees all, in a short model the last one.
        "gemma3_text": {**gemma, "sliding_window_pattern": min(6, base.layers)},
        "llama": {"rope_parameters": llama, "head_dim": base.head_dim},
        "mistral": {"sliding_window": base.sliding_window, "head_dim": base.head_dim},
        "qwen2": {"rope_parameters": qwen},
        "qwen3": {"rope_parameters": qwen, "head_dim": base.head_dim},
    }
    if base.architecture == "qwen2" and base.head_dim * base.heads != base.hidden_size:
        raise ConfigError("`head_dim` times `heads` must be `hidden_size` for qwen2, which has no key for it")
    return AutoConfig.for_model(
        base.architecture,
        vocab_size=base.vocabulary_size,
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.key_value_heads,
        max_position_embeddings=base.max_positions,
        initializer_range=base.initializer_std,
        bos_token_id=tokenizer.token_id("bos_token"),
        eos_token_id=tokenizer.token_id("eos_token"),
        pad_token_id=tokenizer.token_id("pad_token"),
        **family[base.architecture],
    )
