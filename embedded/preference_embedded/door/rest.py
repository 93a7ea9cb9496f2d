"""Triton's JSON (the KServe protocol, version 2, with binary input) as request messages, and answers as JSON.

Only translates: `contract` decides what may pass.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from tritonclient.grpc import service_pb2

from preference_core import tensors
from preference_embedded.door.contract import invalid, shown

#: Parsing JSON stops everything else meanwhile; a battle that is longer may be sent by gRPC, or as binary data.
MAX_JSON_BYTES = 4 * 2**20
BINARY_SIZE = "binary_data_size"
#: How a client asks for its answer to be written: it always gets JSON.
BINARY_WISHES = frozenset({"binary_data_output", "binary_data"})
FORMATS = {"FP32": "f", "INT32": "i"}


def request_of(body: bytes, json_bytes: int, model: str, version: str) -> Any:
    """The `ModelInferRequest` for a body whose first `json_bytes` are JSON and the rest binary input, end to end."""
    if json_bytes > MAX_JSON_BYTES:
        raise invalid(f"The JSON has {json_bytes} bytes, the limit is {MAX_JSON_BYTES}; send long texts by gRPC")
    try:
        table = _object(json.loads(body[:json_bytes]), "request")
    except (ValueError, RecursionError) as error:
        raise invalid("The body is not JSON") from error
    binary = memoryview(body)[json_bytes:]
    request = service_pb2.ModelInferRequest(
        model_name=model, model_version=version, id=_text(table.pop("id", ""), "id")
    )
    _take_parameters(table.pop("parameters", {}), request.parameters)
    contents = []
    for item in _list(table.pop("inputs", []), "inputs"):
        data, binary = _input(_object(item, "input"), request.inputs.add(), binary)
        contents.append(data)
    for item in _list(table.pop("outputs", []), "outputs"):
        wanted = _object(item, "output")
        output = request.outputs.add(name=_text(wanted.pop("name", ""), "name"))
        _take_parameters(wanted.pop("parameters", {}), output.parameters)
        _nothing_left(wanted, "output")
    _nothing_left(table, "request")
    if len(binary):
        raise invalid(f"{len(binary)} bytes of binary data belong to no input")
    request.raw_input_contents.extend(contents)
    return request


def answer_of(data: bytes) -> dict[str, Any]:
    """The JSON of a `ModelInferResponse`."""
    response = service_pb2.ModelInferResponse.FromString(data)
    outputs = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = struct.unpack(f"<{len(raw) // 4}{FORMATS[output.datatype]}", raw)
        outputs.append(
            {"name": output.name, "datatype": output.datatype, "shape": list(output.shape), "data": list(values)}
        )
    answer = {"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs}
    return {"id": response.id, **answer} if response.id else answer


def _input(item: dict[str, Any], tensor: Any, binary: memoryview) -> tuple[bytes, memoryview]:
    """Fills `tensor`; returns its contents, and what is left of the binary data."""
    tensor.name = _text(item.pop("name", ""), "name")
    tensor.datatype = _text(item.pop("datatype", ""), "datatype")
    try:
        tensor.shape.extend(_list(item.pop("shape", []), "shape"))
    except (TypeError, ValueError) as error:
        raise invalid(f"The shape of {shown(tensor.name)} is not a list of 64-bit numbers") from error
    parameters = _object(item.pop("parameters", {}), "parameters")
    size = parameters.pop(BINARY_SIZE, None)
    _take_parameters(parameters, tensor.parameters)
    if size is None:
        data = _contents(list(_flat(_list(item.pop("data", []), "data"))), tensor)
    elif isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(binary):
        data, binary = bytes(binary[:size]), binary[size:]
    else:
        raise invalid(f"`{BINARY_SIZE}` of {shown(tensor.name)} is not a size within the {len(binary)} bytes left")
    _nothing_left(item, "input")
    return data, binary


def _contents(values: list[Any], tensor: Any) -> bytes:
    try:
        if tensor.datatype != "BYTES":
            return struct.pack(f"<{len(values)}f", *values)
        texts = [value.encode() for value in values]
    except (AttributeError, TypeError, UnicodeEncodeError, struct.error, OverflowError) as error:
        raise invalid(f"The data of {shown(tensor.name)} are not what {shown(tensor.datatype)} holds") from error
    return tensors.bytes_contents(texts)


def _flat(values: list[Any]) -> Iterator[Any]:
    """The values of lists in lists, in order, without recursion."""
    waiting = [iter(values)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            yield value
        else:
            waiting.pop()


def _take_parameters(table: Any, target: Any) -> None:
    """Hands parameters on to be refused, except those that say how to write the answer."""
    for name, value in _object(table, "parameters").items():
        if name not in BINARY_WISHES:
            kind = {bool: "bool_param", int: "int64_param", float: "double_param"}.get(type(value), "string_param")
            try:
                ParseDict({kind: value if kind != "string_param" else str(value)[:100]}, target[name[:100]])
            except ParseError as error:
                raise invalid(f"The value of the parameter {shown(name)} cannot be read") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"The {what} is not a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"`{what}` is not a JSON list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise invalid(f"`{what}` is not text of printable characters")
    return value


def _nothing_left(table: Mapping[str, Any], what: str) -> None:
    for name in table:
        raise invalid(f"The {what} has the unknown key {shown(name)}")
