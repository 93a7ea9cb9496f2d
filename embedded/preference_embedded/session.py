"""A model.onnx run by ONNX Runtime on the CPU, configured as for Triton's C++ backend; each request runs alone.

It works on NumPy arrays and knows nothing of Triton's objects, so that it can be tested without a server.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import onnxruntime

from preference_core.errors import ArtefactError, ConfigError
from preference_embedded.batching import Tensors, model_inputs
from preference_embedded.engine_config import EngineConfig, Warn, engine_config


class Session:
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

    def run(self, request: Tensors) -> Tensors:
        """The outputs for a request, which never shares a run with others: on a CPU that gains nothing.

        Raises `RequestError` for a request that does not fit the model, and what ONNX Runtime raises.
        """
        if not self._config.max_batch_size:
            return self._outputs_for(request)
        outputs = self._outputs_for(model_inputs(request, self._config.ragged, self._config.batch_inputs))
        batch = request[self._config.inputs[0].name].shape[0]
        for name, values in outputs.items():
            if values.shape[:1] != (batch,):
                raise ValueError(f"output `{name}` has shape {list(values.shape)}, expected [{batch}, ...]")
        return outputs

    def _outputs_for(self, inputs: Tensors) -> Tensors:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
