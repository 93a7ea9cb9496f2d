"""The original model where it does not fit into memory whole: the same modules, one decoder layer at a time.

Hugging Face's own forward runs once per layer and sequence, with every other layer passed by; weights are read when
their layer's turn comes. Slower than `whole.Reference` by the reading, and equal to it in every bit on a CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import init_empty_weights
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification

from preference_core.errors import SystemFailure
from preference_core.quiet_libraries import quiet_transformers
from preference_export.checkpoint.adapter_names import REPLACED, brought_by, readable_by_peft
from preference_export.checkpoint.files import EMBEDDING, TensorFiles
from preference_export.original.memory import device_in_use
from preference_export.original.whole import config_of


class LayeredReference:
    """The original classifier, asked one sequence at a time, with one decoder layer in memory."""

    def __init__(self, base: Path, adapter: Path | None, labels: int, stored: TensorFiles) -> None:
        """`stored` are the weights of `base`: its own, or the numbers that quantised ones stand for."""
        config = config_of(base, labels)
        brought = brought_by(adapter) if adapter is not None else {}
        config.vocab_size = brought.get(EMBEDDING, (config.vocab_size,))[0]
        with quiet_transformers(), init_empty_weights(include_buffers=False):
            self._model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        # Zeros that take no memory: PEFT would put an adapter on the `meta` device beside a base that is there. What it
        # copies into the base's own parameters, as a resized embedding, needs the memory.
        self._absent: dict[nn.Parameter, str] = {}
        for path, owner in self._model.named_modules():
            for key, parameter in list(owner.named_parameters(recurse=False)):
                name, shape = f"{path}.{key}", parameter.shape
                zeros = torch.zeros(shape) if name in brought else torch.zeros(1).expand(shape)
                setattr(owner, key, nn.Parameter(zeros, requires_grad=False))
                if name not in brought:
                    self._absent[getattr(owner, key)] = name
        if adapter is not None:
            with quiet_transformers(), readable_by_peft(adapter) as readable:
                PeftModel.from_pretrained(self._model, readable)
        self._model.eval()
        self._stored = stored
        torch.set_float32_matmul_precision("highest")  # no TF32, whatever the environment says
        self._device = device_in_use()
        for buffer in self._model.buffers():
            buffer.data = buffer.data.to(self._device)

    @torch.inference_mode()
    def logits(self, sequences: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        """Logits `[sequences, labels]` of token ids, each sequence computed alone."""
        decoder, layers = self._model.model, self._model.model.layers
        states: list[torch.Tensor | None] = [None] * len(sequences)
        logits: list[npt.NDArray[np.float32]] = []
        try:
            with self._embedding(sequences) as ids, self._loaded(decoder.norm), self._loaded(self._model.score):
                for number, layer in enumerate(layers):
                    resumed = _Resumed(layer)
                    decoder.layers = nn.ModuleList(
                        resumed if place == number else _PassedBy() for place in range(len(layers))
                    )
                    with self._loaded(layer):
                        logits = []
                        for place, sequence in enumerate(ids):
                            resumed.states = states[place]
                            logits.append(self._model(sequence[None].to(self._device)).logits[0].cpu().numpy())
                            states[place] = resumed.states
        except RuntimeError as error:
            raise SystemFailure(f"The reference model failed: {error}") from error
        finally:
            decoder.layers = layers
        return np.stack(logits)

    @contextmanager
    def _embedding(self, sequences: Sequence[npt.NDArray[np.int32]]) -> Iterator[Sequence[torch.Tensor]]:
        """Loads the rows of the embedding that `sequences` name; yields the sequences as indices of these."""
        module: Any = self._model.get_input_embeddings()
        if (
            not isinstance(module, nn.Embedding) or module.weight not in self._absent
        ):  # trained, so that it is needed whole
            with self._loaded(module):
                yield [torch.from_numpy(ids).long() for ids in sequences]
            return
        used, indices = np.unique(np.concatenate(sequences), return_inverse=True)
        name, empty = self._stored_name(EMBEDDING), module.weight
        module.weight, module.padding_idx = _parameter(self._rows(name, used), self._device), None
        try:
            yield list(torch.from_numpy(indices).split([len(ids) for ids in sequences]))
        finally:
            module.weight = empty

    def _rows(self, name: str, rows: npt.NDArray[np.int32]) -> torch.Tensor:
        found, start = [], 0
        for block in self._stored.blocks(name):
            inside = rows[(rows >= start) & (rows < start + len(block))] - start
            found.append(block[torch.from_numpy(inside)].float())
            start += len(block)
        return torch.cat(found)

    @contextmanager
    def _loaded(self, module: nn.Module) -> Iterator[None]:
        """Gives a module its weights for a while; an adapter's are always there."""
        read: list[tuple[nn.Module, str, nn.Parameter]] = []
        adapters = [parameter for parameter in module.parameters() if parameter not in self._absent]
        try:
            for path, owner in module.named_modules():
                for key, parameter in list(owner.named_parameters(recurse=False)):
                    if parameter in self._absent and REPLACED not in path:
                        tensor = self._stored.read(self._stored_name(self._absent[parameter]))
                        setattr(owner, key, _parameter(tensor.float(), self._device))
                        read.append((owner, key, parameter))
            for parameter in adapters:
                parameter.data = parameter.data.to(self._device)
            yield
        finally:
            for owner, key, parameter in read:
                setattr(owner, key, parameter)
            for parameter in adapters:
                parameter.data = parameter.data.cpu()

    def _stored_name(self, name: str) -> str:
        found = self._stored.stored_name(name)
        if found not in self._stored.tensors:
            raise SystemFailure(f"The reference model found no tensor `{name}` in `{self._stored.folder}`")
        return found


class _Resumed(nn.Module):
    """One layer, which begins with what the layer before it returned, and keeps what it returns itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        begun = hidden_states if self.states is None else self.states.to(hidden_states.device)
        result: torch.Tensor = self.layer(begun, **arguments)
        self.states = result.cpu()
        return result


class _PassedBy(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return hidden_states


def _parameter(tensor: torch.Tensor, device: str) -> nn.Parameter:
    return nn.Parameter(tensor.to(device), requires_grad=False)
