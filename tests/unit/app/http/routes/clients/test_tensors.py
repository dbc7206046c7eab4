"""Tensors are read and written as in the protocol, and wrong ones are refused with the reason."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInputError, TooLargeError
from app.http.routes.clients.tensors import InputTensor, Values, read_texts, write_tensor


def packed(texts: list[str]) -> bytes:
    parts = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def tensor(**changes: Any) -> InputTensor:
    given_fields = {"name": "text", "shape": [1], "datatype": "BYTES"} | changes
    return InputTensor.model_validate(given_fields)


TEXTS = st.lists(st.text(st.characters(codec="utf-8")), max_size=5)


@given(TEXTS, TEXTS)
def test_bytes_are_read_in_the_order_of_the_tensors(one: list[str], two: list[str]) -> None:
    tensors = []
    for name, texts in (("a", one), ("b", two)):
        size = {"binary_data_size": len(packed(texts))}
        tensors.append(tensor(name=name, shape=[len(texts)], parameters=size))
    assert read_texts(tensors, packed(one) + packed(two), 9) == {"a": one, "b": two}


@given(TEXTS)
def test_texts_survive_both_ways(texts: list[str]) -> None:
    written, tail = write_tensor(Values("label", [len(texts)], "BYTES", texts), as_bytes=True)
    assert written.parameters == {"binary_data_size": len(tail)}
    read = tensor(shape=[len(texts)], parameters=written.parameters)
    assert read_texts([read], tail, 9) == {"text": texts}


@given(st.binary(max_size=40), st.integers(0, 3))
def test_any_bytes_are_texts_or_a_sentence(tail: bytes, rows: int) -> None:
    given_size = {"binary_data_size": len(tail)}
    problem, texts = "", []
    try:
        texts = read_texts([tensor(shape=[rows], parameters=given_size)], tail, 9)["text"]
    except InvalidInputError as error:
        problem = str(error)
    assert problem.isprintable()
    assert problem or packed(texts) == tail


def test_json_may_be_nested_by_rows() -> None:
    flat = tensor(shape=[2], data=["a", "b"])
    nested = tensor(shape=[2, 1], data=[["a"], ["b"]])
    assert read_texts([flat], b"", 9) == read_texts([nested], b"", 9) == {"text": ["a", "b"]}


@pytest.mark.parametrize(
    ("changes", "tail", "reason"),
    [
        ({"data": ["a", "b"]}, b"", "has the shape [1] and more texts"),
        ({"shape": [1, 2], "data": ["a", "b"]}, b"", "it must be [rows] or [rows, 1]"),
        ({}, b"", "must have either data or binary_data_size"),
        ({"data": ["a"], "parameters": {"binary_data_size": 5}}, packed(["a"]), "must have either"),
        ({"data": ["a"]}, b"rest", "has 4 bytes after the JSON, and its tensors 0"),
        ({"parameters": {"binary_data_size": 9}}, packed(["a"]), "only 5 bytes are there"),
        ({"parameters": {"binary_data_size": 3}}, b"abc", "ends within the length of a text"),
        (
            {"parameters": {"binary_data_size": 5}},
            b"\xff\xff\xff\xffa",
            "says 4,294,967,295 bytes for a text, and has 1 left",
        ),
        ({"parameters": {"binary_data_size": 5}}, b"\x01\0\0\0\xff", "is not UTF-8 at byte 0"),
    ],
)
def test_wrong_tensors_are_refused(changes: dict[str, Any], tail: bytes, reason: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_texts([tensor(**changes)], tail, 9)
    assert reason in str(caught.value)


def test_a_name_stands_for_one_tensor() -> None:
    with pytest.raises(InvalidInputError, match="'text' twice"):
        read_texts([tensor(data=["a"]), tensor(data=["b"])], b"", 9)


def test_no_more_texts_are_read_than_a_request_may_have() -> None:
    tail = packed([""] * 1_000_000)
    size = {"binary_data_size": len(tail)}
    with pytest.raises(InvalidInputError, match="has the shape \\[2\\] and more texts"):
        read_texts([tensor(shape=[2], parameters=size)], tail, 9)
    with pytest.raises(TooLargeError, match="too many rows in one request: 1,000,000"):
        read_texts([tensor(shape=[1_000_000], parameters=size)], tail, 9)


def test_numbers_lie_as_in_memory() -> None:
    labels = ("no", "yes")
    scores, tail = write_tensor(
        Values("scores", [1, 2], "FP32", [0.25, 0.75], labels), as_bytes=True
    )
    assert struct.unpack("<2f", tail) == (0.25, 0.75)
    assert scores.parameters == {"labels": ["no", "yes"], "binary_data_size": 8}
    assert scores.data is None
    _, tail = write_tensor(Values("fires", [1, 2], "BOOL", [True, False]), as_bytes=True)
    assert tail == b"\x01\x00"
    shown, tail = write_tensor(Values("fires", [1, 2], "BOOL", [True, False]), as_bytes=False)
    assert (shown.data, tail, shown.parameters) == ([True, False], b"", None)
