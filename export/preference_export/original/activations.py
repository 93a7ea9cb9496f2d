"""Ranges of activations, measured by NVIDIA ModelOpt on the original model reading battles.

They are the largest magnitude of every input feature of every GEMM. All scales (INT8 at any SmoothQuant alpha, FP8)
follow from them and the weights.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from safetensors.torch import save

from preference_core.artefacts.artefact import Draft
from preference_core.ensemble.member_tokenizer import tokenizer_of_checkpoint
from preference_core.ensemble.settings import Classifier
from preference_core.errors import UserError
from preference_export.artefacts.names import RANGES_FILE
from preference_export.checkpoint.files import DECODER_PREFIX
from preference_export.checkpoint.job import Job
from preference_export.checkpoint.tokenizer_check import tokenizer_of
from preference_export.graph.make import open_member
from preference_export.original.member import original_of
from preference_export.original.sample import Sample, checked_sample
from preference_export.original.whole import Reference

#: ModelOpt keeps the largest magnitude per feature of what each projection reads, and changes nothing.
MEASURE_INPUTS = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*_proj.input_quantizer", "cfg": {"num_bits": 8, "axis": -1}},
    ],
    "algorithm": "max",
}


def fill(draft: Draft, job: Job[Classifier]) -> None:
    """Measures and writes the ranges of a member on the sample battles."""
    sequences = tokenised(job, checked_sample(job.config))
    ranges = measured_ranges(original_of(job), sequences)
    content = save({name: ranges[name].contiguous() for name in sorted(ranges)})
    (draft.folder / RANGES_FILE).write_bytes(content)
    draft.details["sequences"] = len(sequences)


def measured_ranges(reference: Reference, sequences: Sequence[npt.NDArray[np.int32]]) -> dict[str, torch.Tensor]:
    """Largest magnitude of each input feature `[inputs]` of every GEMM, by module, over `sequences`.

    The adapter is merged first, in place: quantised are the merged weights.
    """
    quantization = import_modelopt()
    if isinstance(reference.model, PeftModel):
        reference.model = reference.model.merge_and_unload()
    with _quiet():
        quantization.quantize(reference.model, MEASURE_INPUTS, lambda model: reference.logits(sequences))
    quantizers = {
        name: module.input_quantizer
        for name, module in reference.model.named_modules()
        if name.startswith(DECODER_PREFIX) and hasattr(module, "input_quantizer")
    }
    return {
        name: q.amax.detach().float().flatten().cpu().clone() for name, q in quantizers.items() if q.amax is not None
    }


def tokenised(job: Job[Classifier], sample: Sample) -> list[npt.NDArray[np.int32]]:
    """Token ids of the sample's battles, each with its responses in both orders."""
    tokenizer = tokenizer_of_checkpoint(tokenizer_of(job.source).folder, job.member)
    rows = open_member(job).architecture.vocabulary
    tokenizer = tokenizer.with_settings(replace(tokenizer.settings, embedding_rows=rows))
    return [battle.ids for battle in tokenizer.encode_batch(sample.in_both_orders())]


def import_modelopt() -> Any:
    try:
        with _quiet():
            import modelopt.torch.quantization as quantization
    except ImportError as error:
        raise UserError(
            f"NVIDIA ModelOpt is not installed here: {error}",
            hint='Install it with `pip install "preference-export[calibration]"`.',
        ) from error
    return quantization


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps to itself what ModelOpt prints to stdout (which is for results) and warns of its own insides."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
