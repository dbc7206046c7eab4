"""Labels that may mean something else than they were taken for are told to the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.labels.test_label_column import LOOK_THE_SAME
from training.data.files.columns import Columns
from training.data.files.spelling import clean
from training.data.labels.doubts import find_doubts
from training.data.labels.forms import LabelForm
from training.data.labels.lists import ListForm


def doubts(
    values: list[Any], form: LabelForm | None = None, stated: tuple[str, ...] = ()
) -> list[str]:
    """The sentences about a column of names, or of lists of names."""
    columns = Columns(Path("a.jsonl"), len(values), {"label": values})
    rows = [value if isinstance(value, list) else [clean(value)] for value in values]
    return list(find_doubts(columns, "label", form or LabelForm("single_label"), rows, stated))


def test_a_label_that_occurs_once_is_worth_a_warning() -> None:
    (found,) = doubts(["a", "a", "b", "b", "c"])
    assert found == (
        "a.jsonl, row 5, column 'label': 1 of 3 labels occurs in one row only and can't be "
        "evaluated: c"
    )


def test_names_that_look_exactly_the_same_are_told() -> None:
    (found,) = doubts(LOOK_THE_SAME * 2)
    assert "spellings that look the same were read as one label: 'caf\u00e9' (written 'caf" in found
    assert "'cafe\\u0301'" in found
    assert "'tea\\ufeff'" in found


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["True", "true", "no"], "'True' (2 rows) and 'true' (2 rows)"),
        (["1", "1.0", "2"], "'1' (2 rows) and '1.0' (2 rows)"),
        (["007", "7", "8"], "'007' (2 rows) and '7' (2 rows)"),
        (["not spam", "not_spam", "spam"], "'not spam' (2 rows) and 'not_spam' (2 rows)"),
        (["\u0440ay", "pay", "auth"], "'\u0440ay' (2 rows) and 'pay' (2 rows)"),
        (["don\u2019t", "don't", "do"], "'don\u2019t' (2 rows) and \"don't\" (2 rows)"),
        (["\uff11", "1", "2"], "'\uff11' (2 rows) and '1' (2 rows)"),
    ],
)
def test_names_that_look_alike_stay_apart_with_a_warning(names: list[str], shown: str) -> None:
    found = doubts(names * 2)[0]
    assert found.startswith(
        f"a.jsonl, column 'label': labels that look alike were kept apart: {shown}"
    )


@pytest.mark.parametrize(
    "names", [["A+", "A", "A-"], ["a", "b"], ["01", "2"], ["C++", "C"], ["x.y", "xy"]]
)
def test_names_that_differ_visibly_are_worth_no_warning(names: list[str]) -> None:
    assert doubts(names * 2) == []


def test_a_name_for_a_missing_value_is_worth_a_warning() -> None:
    (found,) = doubts(["NA", "US", "nan"] * 2)
    assert "'NA', 'nan' may stand for a missing label" in found


@pytest.mark.parametrize(
    "names",
    [["12.5%", "3%", "7%"], ["$1.50", "$2"], ["1_5.5", "2_5.5", "3.5"], ["1,234.5", "2,000"]],
)
def test_names_that_resemble_numbers_are_worth_a_warning(names: list[str]) -> None:
    (found,) = doubts(names * 2)
    assert f"taken for names: {names[0]!r}" in found
    assert "--kind regression" in found


def test_lists_of_one_label_each_are_worth_a_warning() -> None:
    (found,) = doubts([["a"], ["b"]] * 3, LabelForm("multi_label", ListForm()))
    assert "each row has exactly one label" in found
    assert doubts([["a"], ["b"], []] * 3, LabelForm("multi_label", ListForm())) == []


@pytest.mark.parametrize("name", ["#REF!", "#DIV/0!", "#NAME?", "<NA>", "None"])
def test_errors_of_spreadsheets_may_be_missing_labels(name: str) -> None:
    (found,) = doubts([name, "a", "b"] * 2)
    assert f"{name!r} may stand for a missing label" in found


def test_minus_one_beside_codes_may_be_a_missing_label() -> None:
    (found,) = doubts(["0", "1", "-1"] * 2)
    assert "'-1' may stand for a missing label" in found
    assert doubts(["1", "-1"] * 2) == []


@pytest.mark.parametrize(
    "names",
    [
        ["{'a': 1, 'b': 0}", "{'a': 0, 'b': 1}"],
        ['[{"name": "a"}]', '[{"name": "b"}]'],
        ["Label(1)", "Label(2)"],
        ['"spam"', '"ham"'],
        ['="007"', '="008"'],
        ["'007", "'008"],
        ["['a', 'b']", "['c', 'b']"],
    ],
)
def test_names_that_a_program_wrote_are_worth_a_warning(names: list[str]) -> None:
    (found,) = doubts(names * 2)
    assert "a program's brackets, quotes or signs were taken for names" in found
    assert repr(names[0]) in found
    assert "joined by '|'" in found


def test_names_with_brackets_of_people_are_worth_no_warning() -> None:
    assert doubts(["[other]", "tax (local)", "(none)", "5' x 3'", ":)", "a = b"] * 2) == []


def test_texts_of_zeros_and_ones_may_be_vectors() -> None:
    (found,) = doubts(["010", "100", "001"] * 2)
    assert "look like vectors of 0 and 1" in found
    assert doubts(["010", "10", "001"] * 2)[0].startswith(
        "a.jsonl, column 'label': labels that look alike were kept apart"
    )


def test_a_stated_label_without_a_row_is_told() -> None:
    (found,) = doubts(["a", "b"] * 2, stated=("a", "b", "c"))
    assert found == (
        "a.jsonl, column 'label': no row has the label c, so it can't be learnt or answered"
    )
    assert doubts(["a", "b"] * 2, stated=("a", "b")) == []


@pytest.mark.parametrize(
    "name", ["unlabeled", "Missing", "TBD", "\\N", "(null)", "?", "-", ".", "--"]
)
def test_words_and_signs_for_no_label_are_told(name: str) -> None:
    (found,) = doubts([name, "spam", "ham"] * 2)
    assert f"{name!r} may stand for a missing label" in found


@pytest.mark.parametrize("names", [["+", "-"], ["?", "!", "none of it"], [".", ",", "?"]])
def test_signs_among_signs_are_labels(names: list[str]) -> None:
    assert doubts(names * 2) == []


@pytest.mark.parametrize(
    "names", [["\u201cspam\u201d", "\u201cham\u201d"], ["__label__a", "__label__b"]]
)
def test_curly_quotes_and_prefixes_are_told(names: list[str]) -> None:
    (found,) = doubts(names * 2)
    assert "a program's brackets, quotes or signs were taken for names" in found


def test_an_item_that_joins_other_items_is_told() -> None:
    lists = LabelForm("multi_label", ListForm())
    (found,) = doubts([["joy,anger"], ["joy", "anger"], []] * 3, lists)
    assert "'joy,anger' was read as one name, though its parts are labels of other rows" in found
    assert doubts([["Rock, Pop"], ["Jazz", "Soul"], []] * 3, lists) == []


def test_quotes_around_nothing_are_told() -> None:
    (found,) = doubts(['""', "a", "b"] * 2)
    assert "a program's brackets, quotes or signs were taken for names: '\"\"'" in found
