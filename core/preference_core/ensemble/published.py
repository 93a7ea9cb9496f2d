"""Shapes of the published bases, for planning without a network: what their `config.json` says, by hub id.

Data only: it holds what decides sizes, nothing of the weights. A checkpoint on this machine describes itself.
"""

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]


def llama3_rope(factor: float, original_positions: int = 8192) -> dict[str, Any]:
    """The rotary parameters of Llama-3.1 and later: stretched from a context of `original_positions`."""
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original_positions,
    }


def rope(theta: float) -> dict[str, Any]:
    """Rotary parameters that stretch nothing."""
    return {"rope_type": "default", "rope_theta": theta}


def _sizes(hidden: int, intermediate: int, *, layers: int, heads: int, key_value_heads: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


_GEMMA_2: Shape = {
    "model_type": "gemma2",
    "vocab_size": 256_000,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(10_000.0),
    "tie_word_embeddings": True,
}
_GEMMA_2_2B: Shape = {**_GEMMA_2, **_sizes(2304, 9216, layers=26, heads=8, key_value_heads=4)}
_GEMMA_2_9B: Shape = {**_GEMMA_2, **_sizes(3584, 14336, layers=42, heads=16, key_value_heads=8)}
_LLAMA_3_8B: Shape = {
    "model_type": "llama",
    "vocab_size": 128_256,
    **_sizes(4096, 14336, layers=32, heads=32, key_value_heads=8),
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope(500_000.0),
    "tie_word_embeddings": False,
}
_LLAMA_3_1_8B: Shape = {**_LLAMA_3_8B, "max_position_embeddings": 131_072, "rope_parameters": llama3_rope(8.0)}
_LLAMA_3_2_3B: Shape = {
    **_LLAMA_3_1_8B,
    **_sizes(3072, 8192, layers=28, heads=24, key_value_heads=8),
    "rope_parameters": llama3_rope(32.0),
    "tie_word_embeddings": True,
}
_QWEN2_1_5B: Shape = {
    "model_type": "qwen2",
    "vocab_size": 151_936,
    **_sizes(1536, 8960, layers=28, heads=12, key_value_heads=2),
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(1_000_000.0),
    "tie_word_embeddings": True,
}

_GEMMA_3_1B: Shape = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    **_sizes(1152, 6912, layers=26, heads=4, key_value_heads=1),
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": rope(1_000_000.0),
        "sliding_attention": rope(10_000.0),
    },
    "tie_word_embeddings": True,
}
_GEMMA_3_270M: Shape = {**_GEMMA_3_1B, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18}
_QWEN3_0_6B: Shape = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    **_sizes(1024, 3072, layers=28, heads=16, key_value_heads=8),
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": rope(1_000_000.0),
    "tie_word_embeddings": True,
}
_MISTRAL_7B: Shape = {
    "model_type": "mistral",
    "vocab_size": 32_000,
    **_sizes(4096, 14336, layers=32, heads=32, key_value_heads=8),
    "sliding_window": 4096,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": rope(10_000.0),
    "tie_word_embeddings": False,
}

BASES: Mapping[str, Shape] = {
    "google/gemma-2-2b": _GEMMA_2_2B,
    "google/gemma-2-2b-it": _GEMMA_2_2B,
    "google/gemma-2-9b": _GEMMA_2_9B,
    "google/gemma-2-9b-it": _GEMMA_2_9B,
    "google/gemma-3-270m": _GEMMA_3_270M,
    "google/gemma-3-270m-it": _GEMMA_3_270M,
    "google/gemma-3-1b-pt": _GEMMA_3_1B,
    "google/gemma-3-1b-it": _GEMMA_3_1B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA_3_1_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_3_1_8B,
    "meta-llama/Meta-Llama-3.1-8B-Instruct": _LLAMA_3_1_8B,
    "meta-llama/Llama-3.2-3B": _LLAMA_3_2_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3_2_3B,
    "Qwen/Qwen2-1.5B": _QWEN2_1_5B,
    "Qwen/Qwen2-1.5B-Instruct": _QWEN2_1_5B,
    "Qwen/Qwen3-0.6B-Base": _QWEN3_0_6B,
    "Qwen/Qwen3-0.6B": _QWEN3_0_6B,
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.1": _MISTRAL_7B,
}
