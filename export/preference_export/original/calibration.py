"""Ranges of activations, measured by NVIDIA ModelOpt on the original model reading the configuration's sample battles.

What is kept is the largest magnitude of every input feature of every GEMM, in `build/NAME/calibrations/MEMBER`. All
scales (INT8 at any SmoothQuant alpha, FP8) follow from it and the weights, so one calibration serves them all.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from safetensors.torch import save_file

from preference_core.artefacts.artefact import Artefact, versions_of
from preference_core.artefacts.manifest import sha256_of
from preference_core.ensemble.member_tokenizer import tokenizer_of_checkpoint
from preference_core.ensemble.settings import Classifier, Config
from preference_core.errors import ConfigError, UserError
from preference_export.artefacts.versions import versions
from preference_export.checkpoint.source import Source, input_hashes
from preference_export.checkpoint.tokenizer_check import tokenizer_of
from preference_export.graph.quantise import DECODER
from preference_export.graph.ranges import KIND, RANGES_FILE, calibration_settings
from preference_export.original.sample import Sample, read_sample
from preference_export.original.whole import Reference

#: ModelOpt keeps the largest magnitude per feature of what each projection reads, and changes nothing.
MEASURE_INPUTS = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*_proj.input_quantizer", "cfg": {"num_bits": 8, "axis": -1}},
    ],
    "algorithm": "max",
}


def calibrate_member(config: Config, member: Classifier, source: Source, reference: Callable[[], Reference]) -> bool:
    """Measures and writes the ranges of a member; False when they were there, made from the same inputs.

    `reference` loads the original model, if it is needed.
    """
    sample_path = sample_of(config)
    made_from = {
        "settings": calibration_settings(member),
        "inputs": input_hashes(source),
        "sample": sha256_of(sample_path),
    }
    made_by = {**_modelopt_version(), **versions()}
    artefact = Artefact(config.folders.calibration(member.name), KIND, made_from, made_by)
    if artefact.current() is not None:
        return False
    sequences = tokenised(member, source, read_sample(sample_path, config.labels))
    ranges = measured_ranges(reference(), sequences)
    with artefact.draft() as draft:
        save_file({name: ranges[name].contiguous() for name in sorted(ranges)}, draft.folder / RANGES_FILE)
        draft.details["sequences"] = len(sequences)
    return True


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
        if name.startswith(DECODER) and hasattr(module, "input_quantizer")
    }
    return {
        name: q.amax.detach().float().flatten().cpu().clone() for name, q in quantizers.items() if q.amax is not None
    }


def tokenised(member: Classifier, source: Source, sample: Sample) -> list[npt.NDArray[np.int32]]:
    """Token ids of the sample's battles, each with its responses in both orders."""
    tokenizer = tokenizer_of_checkpoint(tokenizer_of(source).folder, member)
    battles = [*sample.battles, *(battle.swapped() for battle in sample.battles)]
    return [battle.ids for battle in tokenizer.encode_batch(battles)]


def sample_of(config: Config) -> Path:
    """The file of sample battles."""
    if config.data.sample is None:
        raise ConfigError("`data.sample` is missing", hint="Name a file of battles; parity is measured on them.")
    path = Path(config.data.sample)
    if not path.is_file():
        raise ConfigError(f"`data.sample` is not a file: `{path}`", hint="Name a CSV or Parquet file of battles.")
    return path


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


def _modelopt_version() -> dict[str, str]:
    """The installed version. Where there is none, ranges that were measured elsewhere still count."""
    try:
        return versions_of("nvidia-modelopt")
    except PackageNotFoundError:
        return {}
