"""What `tokenize` and `combine` share: their configuration, their tensors, their errors.

The server's own objects come in as arguments, so nothing here imports the server's modules.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from preference_core.artefacts.manifest import REPOSITORY, verify
from preference_core.battles.battle import Battle, battle_from_turns
from preference_core.errors import BattleError, PreferenceError, UserError
from preference_core.tensors import BATTLE_INPUTS, LABELS_PARAMETER, MEMBERS_PARAMETER, names_in
from preference_core.triton.answers import INTERNAL_ERROR

#: In the `details` of a repository's manifest: members that were never compared with their original model.
UNCHECKED = "unchecked"


@dataclass(frozen=True)
class ModelContext:
    """Where a Python model is and what its configuration says; `unchecked` members were never compared."""

    version_folder: Path
    parameters: Mapping[str, str]
    unchecked: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the ensemble's members, in order."""
        return names_in(self.parameters[MEMBERS_PARAMETER])

    @property
    def labels(self) -> tuple[str, ...]:
        """The ensemble's labels, in order."""
        return names_in(self.parameters[LABELS_PARAMETER])


def model_context(args: Mapping[str, str]) -> ModelContext:
    """Context of a model from the arguments of its `initialize`; verifies the model's files against the manifest."""
    folder = Path(args["model_repository"])
    # What is given may be the launcher's link to a path that Triton cannot read; a link is not an artefact.
    manifest = verify(folder.parent.resolve(), kind=REPOSITORY, below=folder.name)
    parameters = json.loads(args["model_config"]).get("parameters", {})
    values = {name: str(value["string_value"]) for name, value in parameters.items()}
    return ModelContext(folder / args["model_version"], values, tuple(manifest.details.get(UNCHECKED, ())))


def battle_of_request(request: Any, pb_utils: Any) -> Battle:
    """The battle in a request: three inputs, each BYTES `[1, turns]`."""
    prompt, response_a, response_b = (_turns(spec.name, request, pb_utils) for spec in BATTLE_INPUTS)
    return battle_from_turns(prompt, response_a, response_b)


def row_of_request(name: str, request: Any, pb_utils: Any) -> npt.NDArray[Any]:
    """The single row of an input `[1, ...]`; a `UserError` when it is missing or has any other batch dimension."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise UserError(f"Tensor `{name}` is missing")
    values = tensor.as_numpy()
    if values.ndim < 2 or values.shape[0] != 1:
        raise UserError(f"Tensor `{name}` has shape {list(values.shape)}, expected [1, ...]: one battle per request")
    row: npt.NDArray[Any] = values[0]
    return row


def per_request(
    requests: list[Any],
    answer: Callable[[Any], Any],
    pb_utils: Any,
    refused: Callable[[Exception], None] = lambda error: None,
) -> list[Any]:
    """Answers each request on its own: one that fails gets an error, its neighbours their results.

    `pb_utils` is the server's `triton_python_backend_utils`; `refused` is told each failure. Exceptions must not leave
    a model's `execute`: the server would fail the whole batch and leak shared memory.
    """

    def failed(message: str, code: int) -> Any:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    user, internal = pb_utils.TritonError.INVALID_ARG, pb_utils.TritonError.INTERNAL
    responses = []
    for request in requests:
        try:
            responses.append(answer(request))
        except PreferenceError as error:
            refused(error)
            message = f"{error.message} ({error.hint})" if error.hint else error.message
            responses.append(failed(message, user if isinstance(error, UserError) else internal))
        except Exception as error:  # a defect of ours: the caller gets one line, the server goes on
            refused(error)
            responses.append(failed(f"{INTERNAL_ERROR}{type(error).__name__}: {error}", internal))
    return responses


def _turns(name: str, request: Any, pb_utils: Any) -> list[str]:
    turns = []
    for data in row_of_request(name, request, pb_utils):
        try:
            turns.append(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BattleError(name, f"is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}") from error
    return turns
