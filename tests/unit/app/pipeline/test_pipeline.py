"""Rows of a request against a task and the server's limits."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidInputError, TooLargeError
from app.pipeline import list_rows, read_texts
from deltas import TaskSpec

SINGLE = TaskSpec(
    name="mood", kind="single_label", labels=("a", "b"), text_fields=("line",), max_length=16
)
PAIR = TaskSpec(
    name="same", kind="regression", labels=(), text_fields=("left", "right"), max_length=16
)


@pytest.mark.parametrize(
    ("inputs", "rows"), [("x", ["x"]), (["x", "y"], ["x", "y"]), ({"a": "b"}, [{"a": "b"}])]
)
def test_a_list_is_always_a_batch(inputs: Any, rows: list[Any]) -> None:
    assert list_rows(inputs, 10) == rows


def test_no_rows_and_too_many() -> None:
    with pytest.raises(InvalidInputError, match="'inputs' is an empty list"):
        list_rows([], 10)
    assert len(list_rows(["x"] * 10, 10)) == 10
    with pytest.raises(TooLargeError, match=r"too many rows in one request: 11 \(limit 10\)"):
        list_rows(["x"] * 11, 10)
    with pytest.raises(TooLargeError, match="rows x targets in one request: 12"):
        list_rows(["x"] * 6, 10, num_targets=2)


def test_texts_come_in_the_order_of_the_fields() -> None:
    rows = [{"right": "r", "left": "l"}, {"text": "l", "text_pair": "r"}]
    assert read_texts(PAIR, rows, 10) == [("l", "r"), ("l", "r")]
    assert read_texts(SINGLE, ["x", {"line": "y"}, {"text": "z"}], 10) == [("x",), ("y",), ("z",)]


def test_every_wrong_row_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_texts(SINGLE, ["ok", 1, {"lin": "x"}, "ok", None], 10)
    assert [(item["row"], item["field"]) for item in caught.value.problems] == [
        (1, None),
        (2, "lin"),
        (4, None),
    ]


def test_a_text_may_be_long_but_not_too_long() -> None:
    assert read_texts(PAIR, [{"left": "x" * 10, "right": "y"}], 10)
    with pytest.raises(TooLargeError, match=r"row 1, field 'right': 11 \(limit 10\)"):
        read_texts(PAIR, [{"left": "y", "right": "y"}, {"left": "y", "right": "x" * 11}], 10)


BLANK = ["", " \t\n", "\u200b \u2060", "\x00\x1f\x7f", "\ufeff\u202e\xad", "\u3000"]


def test_a_row_without_a_text_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_texts(SINGLE, [*BLANK, "!", {"text": ""}, {"line": "\u200b"}, "🙂", "é", "你"], 10)
    named = [(item["row"], item["field"], item["problem"]) for item in caught.value.problems]
    problem = "has no text; leave the row out"
    rows = [*((row, None) for row in range(6)), (7, "text"), (8, "line")]
    assert named == [(*row, problem) for row in rows]
    with pytest.raises(InvalidInputError, match="row 0, field 'right' has no text"):
        read_texts(PAIR, [{"left": "a", "right": " "}], 10)
