"""Cells with several labels: lists, lists as text, joined names, and vectors of 0 and 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.data.files.columns import Columns
from training.data.labels.cells import is_blank
from training.data.labels.lists import ListForm, bit_of, find_joined, find_list_form
from training.errors import DataError


def columns_of(values: list[Any], name: str, names: tuple[str, ...] = ()) -> Columns:
    classes = {"y": names} if names else {}
    return Columns(Path(name), len(values), {"y": values}, name.endswith(".csv"), classes)


def find(values: list[Any], name: str = "a.csv", names: tuple[str, ...] = ()) -> ListForm | None:
    filled = {row: value for row, value in enumerate(values, 1) if not is_blank(value)}
    return find_list_form(columns_of(values, name, names), "y", filled, warn=lambda _: None)


def joined(
    values: list[str], name: str = "a.csv", *, is_sure: bool = False
) -> tuple[ListForm | None, list[str]]:
    filled = {row: value for row, value in enumerate(values, 1) if not is_blank(value)}
    doubts: list[str] = []
    columns = columns_of(values, name)
    return find_joined(columns, "y", filled, doubts.append, is_sure=is_sure), doubts


VECTORS: list[tuple[list[Any], str]] = [
    ([[0, 1, 1], [0, 0, 0], [1, 0, 0]], "a.jsonl"),
    ([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], "a.parquet"),
    ([[False, True, True], [False, False, False], [True, False, False]], "a.jsonl"),
    ([["0", "1", "1"], ["0", "0", "0"], ["1", "0", "0"]], "a.jsonl"),
    (["[0, 1, 1]", "[0, 0, 0]", "[1, 0, 0]"], "a.csv"),
    (["[0. 1. 1.]", "[0. 0. 0.]", "[1. 0. 0.]"], "a.csv"),
    (["[False, True, True]", "[False, False, False]", "[True, False, False]"], "a.csv"),
    (["tensor([0, 1, 1])", "tensor([0, 0, 0])", "tensor([1, 0, 0])"], "a.csv"),
    (["0,1,1", "0,0,0", "1,0,0"], "a.csv"),
    (["0 1 1", "0 0 0", "1 0 0"], "a.csv"),
    (["0|1|1", "0|0|0", "1|0|0"], "a.csv"),
]


@pytest.mark.parametrize(("values", "name"), VECTORS)
def test_vectors_of_zeros_and_ones_are_labels_by_place(values: list[Any], name: str) -> None:
    form = find(values, name)
    assert form is not None
    assert form.width == 3
    assert [form.split(value) for value in values] == [[1, 2], [], [0]]


def test_lists_of_codes_are_no_vectors() -> None:
    for values in ([[0], [1], [0, 1]], [[0], [1]], [[2, 3], [0, 1]], [[], [1], [0, 1]]):
        form = find(values, "a.jsonl")
        assert form == ListForm()
    assert find([[0, 1], [1, 0]], "a.jsonl") == ListForm(width=2)
    assert find([["no"], ["no", "yes"]], "a.jsonl", ("no", "yes")) == ListForm()
    assert find([["0", "1"], ["0"]], "a.jsonl", ("0", "1")) == ListForm()
    assert find([["0", "1"], ["0", "0"]], "a.jsonl", ("0", "1")) == ListForm(width=2)
    assert find([["a", "a"], ["b"]], "a.jsonl") == ListForm()


@pytest.mark.parametrize(
    ("values", "names", "strange"),
    [
        ([[0, 1, 1], [1, 0, -1], [0, 0, 1]], (), "row 2, column 'y': -1 is"),
        ([[2, 0, 0], [0, 1, 0]], (), "row 1, column 'y': 2 is"),
        ([["pos", "pos"], ["pos", "neg"]], (), "row 1, column 'y': 'pos' is"),
        ([["no", "no"], ["no", "yes"]], ("no", "yes"), "row 1, column 'y': 'no' is"),
    ],
)
def test_vectors_of_other_values_are_refused(
    values: list[Any], names: tuple[str, ...], strange: str
) -> None:
    with pytest.raises(DataError) as caught:
        find(values, "a.jsonl", names)
    assert f"{strange} neither 0 nor 1; all lists here have" in str(caught.value)


@pytest.mark.parametrize("vector", [[0, 1], [0, 1, 1, 0], []])
def test_vectors_of_different_widths_are_refused(vector: list[int]) -> None:
    with pytest.raises(DataError) as caught:
        find([[0, 1, 1], [0, 0, 1], vector], "a.jsonl")
    assert caught.value.row == 3
    assert f"a vector with {len(vector)} places, while most rows have 3" in str(caught.value)


def test_vectors_of_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 2, column 'y': \[0.25, 0.75\] has numbers with frac"):
        find([[0, 1], [0.25, 0.75]], "a.jsonl")


@pytest.mark.parametrize(
    "values",
    [
        ["['joy', 'anger']", "['fear']", "[]"],
        ['["joy", "anger"]', '["fear"]', "[]"],
        ["['joy' 'anger']", "['fear']", "[]"],
        ["[joy, anger]", "[fear]", "[]"],
        ["('joy', 'anger')", "('fear',)", "()"],
        ["{'joy', 'anger'}", "{'fear'}", "set()"],
        ["array(['joy', 'anger'], dtype=object)", "array(['fear'], dtype=object)", "array([])"],
        ["[np.str_('joy'), np.str_('anger')]", "[np.str_('fear')]", "[]"],
        ['"joy", "anger"', '"fear"', ""],
        ["'joy', 'anger'", "'fear'", "[]"],
        ["['joy', 'anger']", "fear", "joy"],
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_lists_that_were_written_as_text_are_lists(values: list[str], name: str) -> None:
    if values[1] == "fear":
        values = [*values, "['fear']"]
    form = find(values, name)
    assert form is not None
    assert form.is_literal
    assert form.split(values[0]) == ["joy", "anger"]
    assert form.split("") == []
    if values[1] != "fear":
        assert [form.split(value) for value in values[1:3]] == [["fear"], []]


def test_names_in_brackets_are_names() -> None:
    assert find(["[UNK]", "[other]"]) is None
    assert find(["[joy, anger]", "fear", "joy", "calm"]) is None
    assert find(["{'joy': 1}", "{'joy': 0}"]) is None


def test_a_text_among_lists_as_text_is_a_mistake() -> None:
    with pytest.raises(DataError) as caught:
        find(["['a']", "['a', 'b']", "['b'"])
    assert caught.value.row == 3
    assert "is not a list, though labels here are lists that were written" in str(caught.value)


def test_a_list_in_quotes_is_no_name_even_if_most_cells_are_names() -> None:
    with pytest.raises(DataError, match=r"row 1.*'c' is not a list.*such as .* in row 3.*single_l"):
        find(["c", "d", "['a', 'b']"])
    for name in ('"a, b"', '"it\'s fine, really"', "'a'"):
        assert find([name, "c", "d"]) is None


@pytest.mark.parametrize("separator", [",", ", ", ";", "; ", "\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labels_of_other_rows_that_are_joined_are_several_labels(separator: str, name: str) -> None:
    form, doubts = joined(["joy", "fear", f"joy{separator}fear"] * 2, name)
    assert form == ListForm(separator[0])
    (doubt,) = doubts
    assert "row 3, column 'y':" in doubt
    assert "was read as several labels" in doubt
    assert "--kind single_label" in doubt


def test_a_separator_at_the_end_of_a_cell_joins_nothing() -> None:
    form, doubts = joined(["a;", "a;b;", "b;"])
    assert form == ListForm(";")
    assert len(doubts) == 1
    assert [form.split(value) for value in ("a;", "a;b;")] == [["a"], ["a", "b"]]


@pytest.mark.parametrize(
    "values",
    [
        ["art, design and culture", "art", "music"],
        ["Washington, D.C.", "Paris"],
        ["yes", "no", "not sure; maybe"],
        ["a,", "b"],
        ["spam,", "spam", "ham"],
        ["+1", "1", "-1"],
        ["1.0", "1", "0"],
    ],
)
def test_a_name_with_a_comma_stays_a_name(values: list[str]) -> None:
    assert joined(values) == (None, [])


@pytest.mark.parametrize(
    "values",
    [
        ["joy/fear", "joy", "fear"],
        ["joy fear", "joy", "fear"],
        ["joy+fear", "joy", "fear"],
        ["joy#fear", "joy", "fear"],
        ["joy\tfear", "joy", "fear"],
        ["joy - fear", "joy", "fear"],
        ["good, much", "good, little", "bad, much", "bad, little"],
    ],
)
def test_names_that_may_be_joined_are_worth_a_warning(values: list[str]) -> None:
    form, doubts = joined(values)
    assert form is None
    (doubt,) = doubts
    assert f"row 1, column 'y': {values[0]!r} was read as one name" in doubt
    sure, doubts = joined(values, is_sure=True)
    assert sure is not None
    assert len(sure.split(values[0]) or ()) == 2
    assert doubts == []


@pytest.mark.parametrize(
    "values",
    [
        ["art; sport", "sport; politics", "sport", "politics"],
        ["art, sport", "sport, politics", "sport", "politics", "Washington, D.C."],
    ],
)
def test_one_cell_of_known_labels_among_other_joined_names_is_worth_a_warning(
    values: list[str],
) -> None:
    form, doubts = joined(values)
    assert form is None
    (doubt,) = doubts
    assert f"row 2, column 'y': {values[1]!r} was read as one name" in doubt
    assert joined(values, is_sure=True) == (ListForm(values[0][3]), [])


def test_a_bar_joins_labels_in_formats_without_types() -> None:
    assert find(["a|b", "a"]) == ListForm("|")
    assert find(["a|b", "a"], "a.jsonl") is None
    doubts: list[str] = []
    values = {1: "a|b", 2: "c", 3: "d"}
    columns = columns_of(list(values.values()), "a.csv")
    assert find_list_form(columns, "y", values, doubts.append) == ListForm("|")
    assert "none of which occurs elsewhere; --kind single_label" in doubts[0]


@pytest.mark.parametrize(
    ("value", "bit"),
    [(1, 1), (0.0, 0), (True, 1), ("1", 1), (" 0.0 ", 0), ("TRUE", 1), ("false", 0)]
    + [(value, None) for value in (2, 0.5, "", "yes", None, [1])],
)
def test_only_zero_and_one_are_bits(value: Any, bit: int | None) -> None:
    assert bit_of(value) == bit


@pytest.mark.parametrize("sign", [" ", ",", ";", "|"])
def test_two_zeros_and_ones_are_a_vector_in_text_too(sign: str) -> None:
    """With a comma they would be numbers from 0.0 to 1.1, with a blank four names."""
    doubts: list[str] = []
    values = [f"0{sign}1", f"1{sign}1", f"0{sign}0"]
    texts = dict(enumerate(values, 1))
    form = find_list_form(columns_of(values, "a.csv"), "y", texts, doubts.append)
    assert form is not None
    assert [form.split(value) for value in values] == [[1], [0, 1], []]
    told = [
        f"a.csv, row 1, column 'y': {values[0]!r} was read as a vector of 0 and 1; if it is a "
        "number with a decimal comma, 0.1, use --kind regression"
    ]
    assert [doubt for doubt in doubts if "decimal" in doubt] == (told if sign == "," else [])


def test_a_mapping_joins_no_labels() -> None:
    """The parts of its text would be labels like '{"a": 0'."""
    values = [f'{{"a": {n % 2}, "b": {n // 2}}}' for n in range(4)]
    for is_sure in (True, False):
        assert joined(values * 2, is_sure=is_sure) == (None, [])
