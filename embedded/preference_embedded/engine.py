"""A model.onnx run by ONNX Runtime on the CPU, configured like Triton's C++ backend for it.

Answers requests that Triton merged. It works on NumPy arrays and knows nothing of Triton's objects, so that it can be
tested without a server.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import onnxruntime

from preference_core.errors import ArtefactError, ConfigError
from preference_embedded.batching import RequestError, Tensors, check_request, merge, runs_of, split
from preference_embedded.engine_config import EngineConfig, Warn, engine_config

#: Padded slots that one run of a ragged model may fill. More gains nothing on a CPU, where attention over padding
#: costs; only short texts are faster together. Figures are in docs/decisions.md.
RUN_SLOTS = 256


class Engine:
    """One loaded model."""

    def __init__(self, config: EngineConfig, session: onnxruntime.InferenceSession) -> None:
        self._config = config
        self._session = session
        self._outputs = [tensor.name for tensor in config.outputs]

    @classmethod
    def load(cls, table: Mapping[str, Any], folder: Path, warn: Warn) -> Self:
        """Loads the model file in `folder` (a version of a model) as the model configuration `table` says.

        Raises `ConfigError` when the configuration asks for what this runtime cannot do or does not fit the model, and
        `ArtefactError` when the file is missing or is not an ONNX model. `warn` is told of settings without effect.
        """
        config = engine_config(table)
        path = folder / config.file_name
        if not path.is_file():
            raise ArtefactError(f"`{path}` is missing")
        options = config.session_options(warn)
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own.
            reason = " ".join(str(error).split())
            raise ArtefactError(f"`{path}` is not a model that ONNX Runtime can load: {reason}") from error
        try:
            config.check_model(session.get_inputs(), session.get_outputs())
        except ConfigError as error:
            raise ConfigError(f"config.pbtxt does not fit `{path}`: {error.message}") from error
        return cls(config, session)

    def run(self, requests: Sequence[Tensors]) -> list[Tensors | Exception]:
        """The answer to each request, in order: its outputs, or what is wrong with it. Never raises for one of them.

        Requests are run together as far as that pays; which ones changes no answer beyond rounding.
        """
        answers: list[Tensors | Exception | None] = [self._refusal(request) for request in requests]
        accepted = [index for index, answer in enumerate(answers) if answer is None]
        for run in self._runs([requests[index] for index in accepted]):
            indices = [accepted[position] for position in run]
            for index, answer in zip(indices, self._run_together([requests[i] for i in indices]), strict=True):
                answers[index] = answer
        return [answer for answer in answers if answer is not None]

    def _refusal(self, request: Tensors) -> RequestError | None:
        try:
            check_request(request, self._config.ragged)
        except RequestError as error:
            return error
        return None

    def _runs(self, requests: Sequence[Tensors]) -> list[list[int]]:
        """Indices of the requests to run together. Without a batch dimension, each alone."""
        if not self._config.max_batch_size:
            return [[index] for index in range(len(requests))]
        if self._config.ragged:
            lengths = [sum(request[name].size for name in self._config.ragged) for request in requests]
            return runs_of(lengths, RUN_SLOTS)
        return [list(range(len(requests)))] if requests else []

    def _run_together(self, requests: Sequence[Tensors]) -> list[Tensors | Exception]:
        """Runs one batch. Should it fail, each request is run alone: a bad one must not spoil its neighbours."""
        try:
            return list(self._run_batch(requests))
        except Exception as error:  # Any error of ONNX Runtime; it becomes the answer to the request.
            if len(requests) == 1:
                return [error]
            return [answer for request in requests for answer in self._run_together([request])]

    def _run_batch(self, requests: Sequence[Tensors]) -> Sequence[Tensors]:
        if not self._config.max_batch_size:
            return [dict(zip(self._outputs, self._session.run(self._outputs, dict(requests[0])), strict=True))]
        inputs = merge(requests, self._config.ragged, self._config.batch_inputs)
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        first = self._config.inputs[0].name
        return split(outputs, [request[first].shape[0] for request in requests])
