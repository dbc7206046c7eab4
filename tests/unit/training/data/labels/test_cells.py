"""Single cells: numbers are plain ones only, and lists as text are parsed in every common form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas.backbone.tokenizer import has_text
from tests.laws import law
from training.data.labels.cells import (
    is_blank,
    may_be_thousands,
    parse_list,
    parse_number,
    resembles_number,
)

LISTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1", 1.0),
        (" -2.5 ", -2.5),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        (2, 2.0),
        (0.25, 0.25),
    ],
)
def test_a_plain_number_is_a_number(value: Any, number: float) -> None:
    assert parse_number(value) == number


NO_NUMBERS = ["1_5.5", "nan", "inf", "-Infinity", "0x1", "1,5", "1 000", "\u0661", "", "e5", "."]


@pytest.mark.parametrize(
    "value", [*NO_NUMBERS, "1e999", True, None, float("inf"), float("nan"), 10**400, [1]]
)
def test_nothing_else_is_a_number(value: Any) -> None:
    assert parse_number(value) is None


def test_a_number_may_have_a_decimal_comma() -> None:
    assert parse_number("0,25", ",") == 0.25
    assert parse_number("-3", ",") == -3.0
    assert parse_number(0.5, ",") == 0.5
    for text in ("0.25", "1.234,5", "1,2,3", ",5", "1,5e3"):
        assert parse_number(text, ",") is None


def test_a_number_with_groups_resembles_a_number() -> None:
    for text in (
        "1,234.5",
        "1.234,5",
        "1'234",
        "1 234,5",
        "12.5%",
        "\u20ac 3",
        "1_000",
        "\u22121.5",
        "\u0661\u066b\u0665",
    ):
        assert resembles_number(text), text
        assert parse_number(text) is None, text
    for text in ("a", "1a", "2020-01-31", "A1", "", "1/2", "v1.0"):
        assert not resembles_number(text), text
    assert may_be_thousands("1,234")
    assert not may_be_thousands("0,234")
    assert not may_be_thousands("1,23")


def test_missing_values_are_blank() -> None:
    assert all(map(is_blank, (None, "", " \t", float("nan"))))
    assert not any(map(is_blank, (0, 0.0, "0", [], False)))


@pytest.mark.parametrize(
    "text",
    ["\u200d\u200c", "\ufeff\u00a0", "\x1b", "\u2062", "\u206a \u00ad"],
)
def test_texts_that_serving_refuses_are_blank_in_training(text: str) -> None:
    """Invisible signs such as U+2062 were a text in training, and none for the server."""
    assert is_blank(text)
    assert not has_text(text)
    assert has_text(f"{text}a")
    assert not is_blank(f"{text}a")


@pytest.mark.parametrize("sign", ["\ue000\uf8ff", "\ufffd", "\U000f0000", "\U0010ffff"])
def test_signs_without_a_token_are_names_of_labels(sign: str) -> None:
    """Labels are not tokenized."""
    assert not is_blank(sign)
    assert not has_text(sign)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        (" [ ] ", []),
        ("['a']", ["a"]),
        ("['a', \"b's\"]", ["a", "b's"]),
        ("['it\\'s', 'x\\ny']", ["it's", "x\ny"]),
        ("['a, b', 'c']", ["a, b", "c"]),
        ("['a' 'b']", ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ('["a", 1, null]', ["a", 1, None]),
        ("[1 0 1]", [1, 0, 1]),
        ("[0. 1.]", [0, 1]),
        ("[0.25 1.]", [0.25, 1]),
        ("[True, False, nan]", [True, False, None]),
        ("[very good, bad]", ["very good", "bad"]),
        ("('a',)", ["a"]),
        ("array(['a', 'b'], dtype='<U1')", ["a", "b"]),
        ("frozenset({'a'})", ["a"]),
        ("tensor([0, 1], device='cuda:0')", [0, 1]),
        ("np.array(['a'])", ["a"]),
        ("[np.int64(1), np.False_]", [1, False]),
        ("'a', 'b'", ["a", "b"]),
    ],
)
def test_a_list_is_parsed(text: str, items: list[Any]) -> None:
    assert parse_list(text) == items


@pytest.mark.parametrize(
    "text", ["a", "", "[", "[a", "a]", "{'a': 1}", '{"a": 1}', "[[1]]", "['a', b]", "['a'"]
)
def test_nothing_else_is_a_list(text: str) -> None:
    assert parse_list(text) is None


@law(100)
@given(LISTS)
def test_a_list_is_read_as_python_and_json_write_it(items: list[str]) -> None:
    assert parse_list(repr(items)) == items
    assert parse_list(json.dumps(items)) == items
    assert parse_list(json.dumps(items, ensure_ascii=False)) == items
    assert parse_list(repr(tuple(items))) == items


@law(50)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_a_vector_is_read_as_numpy_writes_it(bits: list[int]) -> None:
    for kind in (int, float, bool):
        assert parse_list(str(np.array(bits, kind))) == bits
