"""The original model: Hugging Face's `*ForSequenceClassification`, with its adapter unmerged, in float32.

Whatever this project makes is compared with it. It is loaded whole, so it needs memory for all weights; `layered` has
the same model for machines without.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification

from preference_core.errors import SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_export.checkpoint.adapter_names import brought_by, readable_by_peft
from preference_export.checkpoint.architecture import hugging_face_config
from preference_export.checkpoint.files import EMBEDDING, TensorFiles
from preference_export.original.memory import device_in_use, fits


class Reference:
    """The original classifier, asked one sequence at a time, without padding."""

    def __init__(self, base: Path, adapters: Sequence[Path], labels: int, stored: TensorFiles | None = None) -> None:
        """Loads safetensors only, and runs no code from the checkpoint. Attention is eager: Gemma-2 has no other.

        `stored` replaces the weights of `base`: those of a quantised base, as the numbers that they stand for.
        Several adapters are merged by PEFT, each into a model of its own, and the mean of these is the original.
        """
        with quiet_transformers():
            models = (_adapted(_base(base, True, labels, stored), adapter) for adapter in adapters)
            if len(adapters) > 1:
                self.model: nn.Module = _mean(models)
            else:
                self.model = next(models, None) or _base(base, False, labels, stored)
            self.model.eval()
        torch.set_float32_matmul_precision("highest")  # no TF32, whatever the environment says
        self.device = _device_for(self.model)
        self.model.to(self.device)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        """Logits `[sequences, labels]` of token ids, each sequence computed alone."""
        try:
            inputs = (torch.from_numpy(ids).long()[None].to(self.device) for ids in sequences)
            rows = [self.model(ids).logits[0].cpu().numpy() for ids in inputs]
        except RuntimeError as error:
            raise SystemFailure(f"The reference model failed: {error}") from error
        return np.stack(rows)


def _device_for(model: nn.Module) -> str:
    """The GPU in use where the model fits there, else the CPU."""
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return "cuda" if device_in_use() == "cuda" and fits(size_bytes, "cuda") else "cpu"


def _base(base: Path, headless: bool, labels: int, stored: TensorFiles | None) -> Any:
    """The classifier without its adapter; a `headless` one gets its head from the adapter."""
    if stored is None:
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=labels,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=headless,
        )
    else:
        model = AutoModelForSequenceClassification.from_config(config_of(base, labels), attn_implementation="eager")
        for name, parameter in model.named_parameters():
            found = stored.stored_name(name)
            if found in stored.tensors:
                parameter.data = stored.read(found).float()
            elif not (headless and name.startswith("score.")):
                raise SystemFailure(f"The reference model found no tensor `{name}` in `{base}`")
    model.config.pad_token_id = None  # as in `config_of`
    return model


def config_of(base: Path, labels: int) -> Any:
    """The configuration of the original in float32, whatever the base is stored in."""
    config = hugging_face_config(base)
    config.num_labels = labels
    config.quantization_config = None
    config.dtype = torch.float32  # Else what the model computes at its making, as Gemma-2's scale, is rounded.
    # Without a pad id Hugging Face pools the very last token. With one it pools the last token that is not the
    # pad id, which is another one where user text ends in it (pad = eos).
    config.pad_token_id = None
    return config


def _adapted(model: Any, adapter: Path) -> Any:
    """The classifier with its adapter, for which training may have resized the embedding."""
    rows = brought_by(adapter).get(EMBEDDING, (model.config.vocab_size,))[0]
    if rows != model.config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with readable_by_peft(adapter) as readable:
        return PeftModel.from_pretrained(model, readable)


def _mean(models: Iterator[Any]) -> Any:
    """One model with the mean of the merged weights of all; two of them are in memory at a time."""
    mean = next(models).merge_and_unload()
    totals = dict(mean.named_parameters())
    count = 1
    for model in models:
        for name, parameter in model.merge_and_unload().named_parameters():
            totals[name].data += parameter.data
        count += 1
    for parameter in totals.values():
        parameter.data /= count
    return mean
