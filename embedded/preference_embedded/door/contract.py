"""What may pass: one battle for one of the ensembles, exactly as `preference_core.tensors` describes it.

Works on Triton's request messages and builds new ones, so that nothing unchecked reaches the server. It
knows neither gRPC nor HTTP.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from preference_core import tensors
from preference_core.errors import nearest, shortened

#: Of a request's id, which the server writes into its log.
MAX_ID_CHARACTERS = 128
#: Of everything in a request but raw contents: parsing takes a hundred times the memory of tiny parts.
MAX_STRUCTURE_BYTES = 2**20
MAX_PARTS = 64
RAW_CONTENTS = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
LENGTH_DELIMITED = 2
FP32_BYTES = 4


class Reason(Enum):
    """Why a request is refused: the name of gRPC's status code, and HTTP's number."""

    INVALID_ARGUMENT = 400
    NOT_FOUND = 404
    UNAVAILABLE = 503


class Refused(Exception):
    """A request that does not reach the server. `message` is for the client."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Limits:
    """How large one battle may be: bytes of all its texts together, and turns of each field."""

    max_text_bytes: int
    max_turns: int

    @property
    def message_bytes(self) -> int:
        """What is read of one message: more than the largest battle, so that what is too large can be named."""
        return 2 * self.max_text_bytes + 8 * len(tensors.FIELDS) * self.max_turns + 2**20


@dataclass(frozen=True)
class Ensemble:
    """What the server says of one ensemble."""

    name: str
    versions: frozenset[str]
    members: int
    labels: int

    @cached_property
    def inputs(self) -> Mapping[str, tensors.Tensor]:
        """What may come in, by name."""
        return {tensor.name: tensor for tensor in (*tensors.BATTLE_INPUTS, tensors.weights(self.members))}

    @cached_property
    def outputs(self) -> frozenset[str]:
        """What may be asked for."""
        return frozenset(tensor.name for tensor in tensors.answer(self.members, self.labels))


def ensemble_named(name: str, version: str, ensembles: Mapping[str, Ensemble]) -> Ensemble:
    """The ensemble that a request asks for; refuses any other model, the members among them."""
    ensemble = ensembles.get(name)
    if ensemble is None:
        raise Refused(Reason.NOT_FOUND, f"There is no model {shown(name)} for clients. {nearest(name, ensembles)}")
    if version and version not in ensemble.versions:
        raise Refused(Reason.NOT_FOUND, f"`{name}` has no version {shown(version)}. {nearest('', ensemble.versions)}")
    return ensemble


def parsed(data: bytes) -> Any:
    """The `ModelInferRequest` in `data`. Raises `Refused` for anything else, and if it would take far more memory."""
    position = structure_bytes = parts = 0
    while position < len(data):
        start = position
        key, position = _varint(data, position)
        length, position = _varint(data, position)
        position += length
        if key & 7 != LENGTH_DELIMITED or position > len(data):
            raise invalid("The message is not a ModelInferRequest")
        parts += 1
        if key >> 3 != RAW_CONTENTS:
            structure_bytes += position - start
        if parts > MAX_PARTS or structure_bytes > MAX_STRUCTURE_BYTES:
            raise invalid(
                f"The message has more than {MAX_PARTS} parts, or {MAX_STRUCTURE_BYTES} bytes outside of "
                "`raw_input_contents`"
            )
    try:
        return service_pb2.ModelInferRequest.FromString(data)
    except DecodeError as error:
        raise invalid("The message is not a ModelInferRequest") from error


def checked(request: Any, ensembles: Mapping[str, Ensemble], limits: Limits) -> Any:
    """The `ModelInferRequest` to send in place of `request`. Raises `Refused` for anything but one battle."""
    ensemble = ensemble_named(request.model_name, request.model_version, ensembles)
    clean = service_pb2.ModelInferRequest(model_name=ensemble.name, model_version=request.model_version)
    clean.id = _checked_id(request.id)
    _no_parameters(request.parameters, "request")
    contents = _contents_of(request, ensemble)
    for name in (tensor.name for tensor in tensors.BATTLE_INPUTS):
        if name not in contents:
            raise invalid(f"Tensor `{name}` is missing")
    text_bytes = 0
    for name, (tensor, data) in contents.items():
        if ensemble.inputs[name].dtype == "BYTES":
            turns = _turns(tensor, limits)
            text_bytes += _text_bytes(data, turns, name)
        else:
            _check_weights(tensor, data, ensemble)
        clean.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        clean.raw_input_contents.append(data)
    if text_bytes > limits.max_text_bytes:
        raise invalid(
            f"The battle's texts have {text_bytes} bytes, the limit is {limits.max_text_bytes} "
            "(`serving.max_text_bytes`)"
        )
    for name in _outputs_of(request, ensemble):
        clean.outputs.add(name=name)
    return clean


def shown(value: str) -> str:
    """What a client sent, short and without control characters, for messages and logs."""
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in shortened(value))
    return f"`{''.join(printable)}`"


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, at most 35 bits of it, and the position behind it."""
    value = shift = 0
    while position < len(data) and shift < 35:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    raise invalid("The message is not a ModelInferRequest")


def _checked_id(value: str) -> str:
    if len(value) > MAX_ID_CHARACTERS or not value.isprintable():
        raise invalid(f"The request's id is {shown(value)}, expected at most {MAX_ID_CHARACTERS} printable characters")
    return value


def _no_parameters(parameters: Mapping[str, Any], where: str) -> None:
    for name in parameters:
        raise invalid(f"The {where} has the parameter {shown(name)}, and parameters are not accepted")


def _contents_of(request: Any, ensemble: Ensemble) -> dict[str, tuple[Any, bytes]]:
    """Every input of a request with its bytes, by name; names and dtypes are those of the ensemble."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"The request has {len(request.inputs)} inputs and contents for {len(raw)}")
    contents: dict[str, tuple[Any, bytes]] = {}
    for index, tensor in enumerate(request.inputs):
        expected = ensemble.inputs.get(tensor.name)
        if expected is None:
            raise invalid(f"`{ensemble.name}` has no input {shown(tensor.name)}. {nearest('', ensemble.inputs)}")
        if tensor.name in contents:
            raise invalid(f"Tensor `{tensor.name}` is given twice")
        if tensor.datatype != expected.dtype:
            raise invalid(f"Tensor `{tensor.name}` is {shown(tensor.datatype)}, expected {expected.dtype}")
        _no_parameters(tensor.parameters, f"tensor `{tensor.name}`")
        if raw and tensor.HasField("contents"):
            raise invalid(f"Tensor `{tensor.name}` has contents in two places")
        contents[tensor.name] = (tensor, raw[index] if raw else _typed_contents(tensor))
    return contents


def _typed_contents(tensor: Any) -> bytes:
    """Contents sent as a list of values, as bytes."""
    if tensor.datatype == "FP32":
        values = tensor.contents.fp32_contents
        return struct.pack(f"<{len(values)}f", *values)
    return tensors.bytes_contents(tensor.contents.bytes_contents)


def _turns(tensor: Any, limits: Limits) -> int:
    """The number of turns in a text tensor, which must be `[1, turns]`."""
    shape = list(tensor.shape)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < 0:
        raise invalid(f"Tensor `{tensor.name}` has shape {_shape(shape)}, expected [1, turns]: one battle per request")
    if shape[1] > limits.max_turns:
        raise invalid(
            f"Tensor `{tensor.name}` has {shape[1]} turns, the limit is {limits.max_turns} (`serving.max_turns`)"
        )
    return int(shape[1])


def _text_bytes(data: bytes, turns: int, name: str) -> int:
    """Bytes of the texts in `data`: each after its length, as many as there are turns, and nothing else."""
    position = 0
    for turn in range(turns):
        start = position + tensors.LENGTH_BYTES
        position = start + int.from_bytes(data[position:start], "little")
        if start > len(data) or position > len(data):
            raise invalid(f"Tensor `{name}` ends within turn {turn} of {turns}: it has {len(data)} bytes")
    if position != len(data):
        raise invalid(f"Tensor `{name}` has {len(data)} bytes, its {turns} turns take {position}")
    return position - tensors.LENGTH_BYTES * turns


def _check_weights(tensor: Any, data: bytes, ensemble: Ensemble) -> None:
    shape = list(tensor.shape)
    if shape != [1, ensemble.members]:
        raise invalid(f"Tensor `{tensor.name}` has shape {_shape(shape)}, expected [1, {ensemble.members}]")
    if len(data) != FP32_BYTES * ensemble.members:
        raise invalid(f"Tensor `{tensor.name}` has {len(data)} bytes, expected {FP32_BYTES * ensemble.members}")


def _outputs_of(request: Any, ensemble: Ensemble) -> list[str]:
    names: list[str] = []
    for output in request.outputs:
        _no_parameters(output.parameters, f"output {shown(output.name)}")
        if output.name not in ensemble.outputs:
            raise invalid(f"`{ensemble.name}` has no output {shown(output.name)}. {nearest('', ensemble.outputs)}")
        if output.name in names:
            raise invalid(f"Output `{output.name}` is asked for twice")
        names.append(output.name)
    return names


def _shape(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} dimensions"


def invalid(message: str) -> Refused:
    """A request that no other server would take either."""
    return Refused(Reason.INVALID_ARGUMENT, message)
