"""Spellings that look the same are one, and those that only look alike are found."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from training.data.files.spelling import clean, look_alikes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (" a\t", "a"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\u200bb\ufeff", "ab"),
        ("a\u00a0b", "a b"),
        ("\u2003a\u200d", "a"),
        ("so\u00adft", "soft"),
        ("a\nb", "a\nb"),
        ("\u200b", ""),
        ("a\x00b\x1b", "ab"),
    ],
)
def test_what_looks_the_same_is_the_same(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_joiners_inside_a_text_have_a_meaning() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert clean(f" {family} ") == family
    assert clean(persian) == persian


@law(100)
@given(TEXT)
def test_cleaning_is_done_once(text: str) -> None:
    assert clean(clean(text)) == clean(text)
    assert clean(unicodedata.normalize("NFD", text)) == clean(text)
    assert clean(f"\u200b {text}\u00a0\ufeff") == clean(text)


@pytest.mark.parametrize(
    "names",
    [
        ["Bar", "bar"],
        ["1", "1.0", "01"],
        ["a b", "a_b", "a-b", "a  b"],
        ["stra\u00dfe", "STRASSE"],
        ["\u0430\u0435", "ae"],
        ["\uff21", "A"],
        ["don\u2019t", "don't"],
        ["a\u200db", "ab"],
        ["\u2764", "\u2764\ufe0f"],
        ["spam", "spam.", '"spam"'],
        ["R&amp;D", "R&D"],
        ["1", "true", "TRUE"],
        ["no", "N"],
    ],
)
def test_names_that_look_alike_are_found(names: list[str]) -> None:
    assert look_alikes(["x", *names, "y"]) == [names]


def test_names_that_differ_visibly_are_not_alike() -> None:
    names = ["A", "A+", "A-", "B", "1", "2", "10", "1a", "a.b", "ab", "-1", "C", "C++", "C#"]
    assert look_alikes(names) == []


def test_long_numbers_that_differ_do_not_look_alike() -> None:
    assert look_alikes(["100000000000000000", "100000000000000001"]) == []
    assert look_alikes(["1", "1.0", "true"]) == [["1", "1.0", "true"]]
