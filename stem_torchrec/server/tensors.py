"""Tensors of the Open Inference Protocol (KServe v2): as JSON, or as bytes behind it, to columns and back."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.expressions.value_types import GREATEST_INT
from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.server.json_rows import parse_object
from stem_torchrec.server.refusals import RefusedError, shortened

DATATYPES: dict[str, tuple[str, pa.DataType, set[type]]] = {
    "BOOL": ("?", pa.bool_(), {bool}),
    **{f"INT{bits}": (f"<i{bits // 8}", getattr(pa, f"int{bits}")(), {int}) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (f"<u{bits // 8}", getattr(pa, f"uint{bits}")(), {int}) for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": (f"<f{bits // 8}", getattr(pa, f"float{bits}")(), {int, float}) for bits in (16, 32, 64)},
    "BYTES": ("", pa.string(), {str}),
}
"""By the protocol's name: the type in numpy, in Arrow, and in JSON."""
_DIMENSIONS = 8
"""Sizes of a shape."""


@dataclass(frozen=True)
class WantedOutput:
    """A tensor of the answer."""

    name: str
    binary: bool
    """Whether it comes as bytes behind the JSON."""


@dataclass(frozen=True)
class InferenceRequest:
    """A request of the protocol."""

    id: str | None
    inputs: Mapping[str, pa.Array]
    """The values of each tensor, in one dimension."""
    rows: Mapping[str, int]
    """The first dimension of each tensor."""
    outputs: Sequence[WantedOutput] | None
    """None for all."""
    binary_output: bool
    """Whether all of them come as bytes."""


def parse_request(body: bytes | bytearray, json_bytes: int | None) -> InferenceRequest:
    """A request from its body.

    Args:
        body: JSON, and behind it the bytes of binary tensors in the order of the inputs.
        json_bytes: of the header Inference-Header-Content-Length; None if all of the body is JSON.

    Raises RefusedError for whatever is no request of the protocol.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise RefusedError(400, f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} bytes.")
    binary = memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    content = parse_object(bytes(body[: len(body) - len(binary)]))
    inputs, rows = dict[str, pa.Array](), dict[str, int]()
    for entry in _entries(content, "inputs"):
        name, parameters = entry["name"], _parameters(entry)
        if name in inputs:
            raise RefusedError(400, f"the input {name!r} stands twice.")
        shape, (form, kind, types) = _shape(entry), _datatype(entry)
        if "binary_data_size" in parameters:
            size = parameters["binary_data_size"]
            if type(size) is not int or not 0 <= size <= len(binary):
                raise RefusedError(
                    400, f"binary_data_size of {name!r} is {shortened(size)}, but {len(binary)} bytes are left."
                )
            values = _from_bytes(name, binary[:size], form)
            binary = binary[size:]
        else:
            values = _from_json(name, entry.get("data"), kind, types)
        count = math.prod(shape)
        if len(values) != count:
            raise RefusedError(400, f"the input {name!r} has the shape {shortened(shape)}, but {len(values)} values.")
        inputs[name], rows[name] = values, shape[0]
    if len(binary):
        raise RefusedError(400, f"{len(binary)} bytes behind the JSON belong to no input; give binary_data_size.")
    parameters = _parameters(content)
    outputs = None
    if content.get("outputs"):
        outputs = [_output(entry, parameters) for entry in _entries(content, "outputs")]
    request_id = content.get("id")
    if not isinstance(request_id, str | NoneType):
        raise RefusedError(400, f"id is {shortened(request_id)}, but must be text.")
    return InferenceRequest(request_id, inputs, rows, outputs, _flag(parameters, "binary_data_output"))


def answer_parts(
    name: str, version: str, request_id: str | None, outputs: Mapping[str, tuple[NDArray[np.float32], bool]]
) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer and the bytes behind it.

    Args:
        name: of the model.
        version: of the bundle.
        request_id: what the request was called.
        outputs: predictions (B,) by name, and whether they come as bytes.
    """
    content: dict[str, Any] = {"model_name": name, "model_version": version}
    if request_id is not None:
        content["id"] = request_id
    content["outputs"], binary = [], []
    for output, (values, as_bytes) in outputs.items():
        entry: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": [len(values)]}
        if as_bytes:
            binary.append(values.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            entry["data"] = values.tolist()
        content["outputs"].append(entry)
    return content, b"".join(binary)


def _entries(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RefusedError(400, f"{name} is {shortened(entries)}, but must be a list of tensors.")
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            raise RefusedError(
                400, f"a tensor of {name} has the name {shortened(entry.get('name'))}, but must have a text."
            )
    return entries


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise RefusedError(400, f"parameters is {shortened(parameters)}, but must be an object.")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RefusedError(400, f"{name} is {shortened(value)}, but must be true or false.")
    return value


def _output(entry: Mapping[str, Any], of_request: Mapping[str, Any]) -> WantedOutput:
    parameters = _parameters(entry)
    if parameters.get("classification"):
        raise RefusedError(400, f"the output {entry['name']!r} asks for classification, which is not known.")
    return WantedOutput(entry["name"], _flag(parameters, "binary_data", _flag(of_request, "binary_data_output")))


def _shape(entry: Mapping[str, Any]) -> list[int]:
    shape = entry.get("shape")
    # The product of sizes without an end would take minutes.
    if (
        not isinstance(shape, list)
        or not 1 <= len(shape) <= _DIMENSIONS
        or not all(type(size) is int and 0 <= size <= GREATEST_INT for size in shape)
    ):
        sentence = f"the shape of {entry['name']!r} is {shortened(shape)}, but must be a list of sizes"
        raise RefusedError(400, f"{sentence}, at most {_DIMENSIONS}.")
    return shape


def _datatype(entry: Mapping[str, Any]) -> tuple[str, pa.DataType, set[type]]:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise RefusedError(
            400, f"the datatype of {entry['name']!r} is {shortened(datatype)}, but must be one of {known}."
        )
    return DATATYPES[datatype]


def _from_json(name: str, data: Any, kind: pa.DataType, types: set[type]) -> pa.Array:
    """The values of a tensor in JSON, nested or flat; null is a missing value."""
    if not isinstance(data, list):
        raise RefusedError(
            400, f"the input {name!r} has the data {shortened(data)}, but must have a list or binary_data_size."
        )
    while any(isinstance(value, list) for value in data):
        if not all(isinstance(value, list) for value in data):
            raise RefusedError(400, f"the data of {name!r} are lists and values beside each other.")
        data = list(chain.from_iterable(data))
    if not set(map(type, data)) <= types | {NoneType}:
        value = next(value for value in data if value is not None and type(value) not in types)
        raise RefusedError(400, f"the data of {name!r} have {shortened(value)}, which is no {kind}.")
    try:
        return pa.array(data, kind)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise RefusedError(400, f"the data of {name!r} are not of {kind} ({reason_of(error)[:100]}).") from error


def _from_bytes(name: str, data: memoryview, form: str) -> pa.Array:
    """The values of a tensor in little-endian bytes; a text has its length in 4 bytes before it."""
    if not form:
        return _texts(name, data)
    if len(data) % np.dtype(form).itemsize:
        raise RefusedError(400, f"the input {name!r} has {len(data)} bytes, not a multiple of its datatype's.")
    if form == "?":
        return pa.array(np.frombuffer(data, np.uint8) != 0)
    # A copy, as the bytes may begin at any place of the body.
    return pa.array(np.frombuffer(data, form).copy())


def _texts(name: str, data: memoryview) -> pa.Array:
    texts, place = [], 0
    try:
        while place < len(data):
            end = place + 4 + struct.unpack_from("<I", data, place)[0]
            if end > len(data):
                raise ValueError("a text ends behind the last byte")
            texts.append(str(data[place + 4 : end], "utf-8"))
            place = end
    except (struct.error, ValueError) as error:
        raise RefusedError(400, f"the bytes of {name!r} are no texts in UTF-8 ({reason_of(error)}).") from error
    return pa.array(texts, pa.string())
