"""The published bases as `transformers` sees them, for planning without a network.

A view of `preference_core.ensemble.published`, with the number of parameters that the page of each model states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preference_core.ensemble.published import BASES as SHAPES
from preference_core.ensemble.published import Shape

#: Parameters of the checkpoint, its language-model head included, by the beginning of the hub id.
PARAMETERS = {
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b": 999_885_952,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2-1.5B": 1_543_714_304,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "mistralai/Mistral-7B": 7_241_732_096,
}


@dataclass(frozen=True)
class Published:
    """A base by its numbers."""

    shape: Shape
    parameters: int

    def config(self) -> Any:
        """The `transformers` configuration."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**self.shape)


BASES: Mapping[str, Published] = {
    hub_id: Published(shape, next(count for start, count in PARAMETERS.items() if hub_id.startswith(start)))
    for hub_id, shape in SHAPES.items()
}
