"""The backend `onnxruntime` for a server that lacks Triton's own: same name, same config.pbtxt, same model.onnx.

Runs inside Triton's Python stub and only translates between Triton's objects and `preference_embedded.session`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton

from preference_core.errors import PreferenceError, UserError
from preference_embedded.session import Session


class TritonPythonModel:
    """One model instance, as the Python backend drives it."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the model file of this version; an error here makes the model, and with it the server, not ready."""
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._session = Session.load(config, folder, warn=triton.Logger.log_warn)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order. Never raises: an exception would leak the requests' shared memory."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        if request.is_cancelled():
            return triton.InferenceResponse(error=triton.TritonError("cancelled", triton.TritonError.CANCELLED))
        try:
            outputs = self._session.run({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
            return triton.InferenceResponse([triton.Tensor(name, values) for name, values in outputs.items()])
        except Exception as error:
            message = error.message if isinstance(error, PreferenceError) else f"{type(error).__name__}: {error}"
            code = triton.TritonError.INVALID_ARG if isinstance(error, UserError) else triton.TritonError.INTERNAL
            return triton.InferenceResponse(error=triton.TritonError(message, code))
