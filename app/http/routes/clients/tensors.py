"""Reads and writes the tensors of the Open Inference Protocol, as JSON or as bytes after the JSON.

Texts are tensors of the type BYTES. In the binary form each text has its length in front, as four
bytes, the least first; numbers lie there as they lie in memory. The tensors follow the JSON in
their order, and each says its size in bytes. Tested by
tests/unit/app/http/routes/clients/test_tensors.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from app.errors import TooLargeError
from app.http.routes.clients.answers import refuse
from app.http.schemas import Name, RequestBody

_LENGTH = struct.Struct("<I")
_FORMATS = {"FP32": "<{}f", "BOOL": "<{}?"}


class InputParameters(RequestBody):
    """Parameters of an input tensor."""

    binary_data_size: Annotated[
        int | None, Field(strict=True, ge=0, description="Bytes of the tensor after the JSON.")
    ] = None


class InputTensor(RequestBody):
    """Texts of all rows: those of one field."""

    name: Name
    shape: Annotated[
        list[Annotated[int, Field(strict=True, ge=0)]],
        Field(min_length=1, max_length=2, description="[rows] or [rows, 1]."),
    ]
    datatype: Annotated[Literal["BYTES"], Field(description="Texts in UTF-8.")]
    parameters: InputParameters | None = None
    data: list[Any] | None = None


class OutputParameters(RequestBody):
    """Parameters of an output tensor."""

    binary_data: Annotated[bool | None, Field(strict=True)] = None
    classification: Annotated[
        int | None,
        Field(strict=True, ge=1, description="Give the best as texts `score:number:label`."),
    ] = None


class RequestedOutput(RequestBody):
    """An output tensor to give."""

    name: Name
    parameters: OutputParameters | None = None


class InferParameters(RequestBody):
    """Parameters of a request."""

    binary_data_output: Annotated[
        bool | None, Field(strict=True, description="Give all tensors as bytes after the JSON.")
    ] = None


class InferRequest(RequestBody):
    """Rows as tensors, one for each text field."""

    model_config = ConfigDict(protected_namespaces=())

    id: Name | None = None
    model_name: Annotated[
        Name | None, Field(description="The model of the path; clients of KServe name it twice.")
    ] = None
    parameters: InferParameters | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=2)]
    outputs: Annotated[list[RequestedOutput] | None, Field(max_length=16)] = None


class OutputTensor(BaseModel):
    """An output tensor; its values are in `data` or, with a size in bytes, after the JSON."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "BOOL"]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class Values(NamedTuple):
    """The values of an output tensor, in the order of memory.

    Attributes:
        name: name of the tensor.
        shape: size of each dimension.
        datatype: type of the values.
        flat: all values.
        labels: names of the columns, if the tensor has a column for each label.
    """

    name: str
    shape: list[int]
    datatype: Literal["BYTES", "FP32", "BOOL"]
    flat: Sequence[Any]
    labels: tuple[str, ...] | None = None


def read_texts(tensors: Sequence[InputTensor], tail: bytes, max_rows: int) -> dict[str, list[Any]]:
    """Return the texts of each input tensor by its name.

    Args:
        tensors: tensors of the request.
        tail: bytes after the JSON.
        max_rows: most rows of a request; no more texts than that are read.

    Raises:
        InvalidInputError: sizes, shapes or texts are wrong.
        TooLargeError: a tensor has too many rows.
    """
    found: dict[str, list[Any]] = {}
    position = 0
    for tensor in tensors:
        if tensor.name in found:
            refuse("inputs", f"have the tensor {tensor.name[:64]!r} twice")
        size = tensor.parameters.binary_data_size if tensor.parameters else None
        if (size is None) == (tensor.data is None):
            refuse(tensor.name, "must have either data or binary_data_size")
        num_rows = _num_rows(tensor, max_rows)
        if size is None:
            found_texts = _flat(tensor.data or [])
        else:
            found_texts = _texts_of(tail[position : position + size], size, tensor.name)
            position += size
        texts = list(islice(found_texts, num_rows + 1))
        if len(texts) != num_rows:
            count = "more" if len(texts) > num_rows else f"{len(texts):,}"
            refuse(tensor.name, f"has the shape {tensor.shape} and {count} texts")
        found[tensor.name] = texts
    if position != len(tail):
        refuse(None, f"has {len(tail):,} bytes after the JSON, and its tensors {position:,}")
    return found


def _num_rows(tensor: InputTensor, max_rows: int) -> int:
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        refuse(tensor.name, f"has the shape {tensor.shape}; it must be [rows] or [rows, 1]")
    if tensor.shape[0] > max_rows:
        setting = "DELTABERT_MAX_ROWS_PER_REQUEST"
        raise TooLargeError("rows in one request", tensor.shape[0], max_rows, setting)
    return tensor.shape[0]


def _flat(values: list[Any]) -> Iterator[Any]:
    """Yield the values of a JSON tensor, whose rows may be lists of one value."""
    for value in values:
        if isinstance(value, list) and len(value) == 1:
            yield value[0]
        else:
            yield value


def _texts_of(part: bytes, size: int, name: str) -> Iterator[str]:
    if len(part) != size:
        refuse(name, f"says binary_data_size {size:,}, but only {len(part):,} bytes are there")
    position = number = 0
    while position < size:
        if position + _LENGTH.size > size:
            refuse(name, "ends within the length of a text", number)
        (length,) = _LENGTH.unpack_from(part, position)
        position += _LENGTH.size
        if position + length > size:
            left = size - position
            refuse(name, f"says {length:,} bytes for a text, and has {left:,} left", number)
        try:
            yield part[position : position + length].decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(name, f"is not UTF-8 at byte {error.start}; encode it as UTF-8", number)
        position += length
        number += 1


def write_tensor(values: Values, *, as_bytes: bool) -> tuple[OutputTensor, bytes]:
    """Return an output tensor for the JSON, and its bytes for after it, which may be none."""
    parameters: dict[str, Any] = {"labels": list(values.labels)} if values.labels else {}
    tail = _bytes_of(values) if as_bytes else b""
    if as_bytes:
        parameters["binary_data_size"] = len(tail)
    tensor = OutputTensor(
        name=values.name,
        shape=values.shape,
        datatype=values.datatype,
        parameters=parameters or None,
        data=None if as_bytes else list(values.flat),
    )
    return tensor, tail


def _bytes_of(values: Values) -> bytes:
    if values.datatype == "BYTES":
        texts = [text.encode() for text in values.flat]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return struct.pack(_FORMATS[values.datatype].format(len(values.flat)), *values.flat)
