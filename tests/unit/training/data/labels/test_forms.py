"""The form of a label column is inferred from its values, and doubts are told or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltas.manifest import TaskKind
from training.data.files.columns import Columns
from training.data.labels.forms import LabelForm, infer_form
from training.errors import DataError


def infer_with_doubts(
    values: list[Any], name: str = "a.jsonl", kind: TaskKind | None = None
) -> tuple[LabelForm, list[str]]:
    columns = Columns(Path(name), len(values), {"label": values}, name.endswith(".csv"))
    doubts: list[str] = []
    return infer_form(columns, "label", kind, doubts.append), doubts


def infer(values: list[Any], name: str = "a.jsonl", kind: TaskKind | None = None) -> str:
    return infer_with_doubts(values, name, kind)[0].kind


def decimal(values: list[str], kind: TaskKind | None = None) -> str:
    return infer_with_doubts(values, "a.csv", kind)[0].decimal


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "single_label"),
        ([1, 2], "single_label"),
        ([True, False], "single_label"),
        (["0.5", "1.5"], "single_label"),
        ([0.5, 2.0], "regression"),
        ([1, 2.5], "regression"),
        ([1.5, None], "regression"),
        ([0.0, 1.0, None], "single_label"),
        ([1, 2.0], "single_label"),
        ([1.5, float("nan")], "regression"),
        ([["a"], []], "multi_label"),
        ([None], "single_label"),
    ],
)
def test_kinds_are_inferred_from_types(values: list[Any], kind: str) -> None:
    assert infer(values) == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "single_label"),
        (["1", "-2"], "single_label"),
        (["1", "2.5"], "regression"),
        (["0.0", "1.0"], "single_label"),
        (["1e-3", "2"], "regression"),
        (["1", "nan"], "single_label"),
        (["a|b", "a"], "multi_label"),
        (["1.5", "", "2"], "regression"),
        (["1.5", "a"], "single_label"),
    ],
)
def test_kinds_are_inferred_from_text(values: list[str], kind: str) -> None:
    assert infer(values, "a.csv") == kind


@pytest.mark.parametrize(
    ("values", "row", "name"),
    [
        (["0.5", "", "1.5", "n/a", "2"], 4, "a.csv"),
        ([0.5, 1, "1.5", 2.5], 3, "a.jsonl"),
        ([1, 1, 1.5, True], 4, "a.jsonl"),
    ],
)
def test_a_text_among_numbers_is_a_mistake(values: list[Any], row: int, name: str) -> None:
    """Taking all for names would train another task than the user means."""
    with pytest.raises(DataError) as caught:
        infer(values, name)
    assert (caught.value.row, caught.value.column) == (row, "label")
    assert "is not a number, though most labels here are" in str(caught.value)
    assert "--kind single_label" in str(caught.value)


@pytest.mark.parametrize("text", ["1_5.5", "nan", "inf", "0x1", "\u0661.5", "1.5 kg", "1,5"])
def test_only_plain_numbers_are_numbers(text: str) -> None:
    """Python's float takes more: underscores, names, the digits of other scripts."""
    with pytest.raises(DataError, match=r"row 4, column 'label': .* is not a number, though most"):
        infer(["0.5", "1.5", "2", text], "a.csv")
    assert infer([text, "x", "x"], "a.csv") == "single_label"


@pytest.mark.parametrize(
    "values", [["0,25", "1,75", "2"], ["-0,5", "+1,5"], ["0,125", "0,250"], ["1,234", "2,5"]]
)
def test_decimal_commas_make_numbers(values: list[str]) -> None:
    form, doubts = infer_with_doubts(values, "a.csv")
    assert (form.kind, form.decimal) == ("regression", ",")
    assert form.note == "numbers with a decimal comma"
    assert doubts == []
    assert decimal(values, "regression") == ","


def test_a_comma_that_may_separate_thousands_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        infer(["12", "1,234", "5,678"], "a.csv")
    assert caught.value.row == 2
    assert "'1,234' may be 1.234 or 1234; write numbers with a decimal point" in str(caught.value)
    assert infer(["1,234", "5,678"], "a.csv", "single_label") == "single_label"
    form, doubts = infer_with_doubts(["1,234", "5,678"], "a.csv", "regression")
    assert form.decimal == ","
    assert doubts == [
        "a.csv, row 1, column 'label': '1,234' was read as 1.234, like all numbers here with such "
        "a mark; if 1234 is meant, write it so"
    ]


def test_a_point_that_may_separate_thousands_is_told() -> None:
    for kind in (None, "regression"):
        form, (doubt,) = infer_with_doubts(["12", "1.234", "5.678"], "a.csv", kind)
        assert (form.kind, form.decimal) == ("regression", ".")
        assert "row 2, column 'label': '1.234' was read as 1.234" in doubt
        assert "if 1234 is meant" in doubt
    assert infer_with_doubts(["0.234", "5.678"], "a.csv")[1] == []


def test_a_comma_between_codes_of_other_rows_is_refused() -> None:
    """Half points with decimal commas, and lists of codes, are written alike."""
    values = ["0", "5", "0,5", "1", "1,5"]
    with pytest.raises(DataError, match=r"decimal comma \(--kind regression\), or two labels"):
        infer(values, "a.csv")
    assert infer(values, "a.csv", "regression") == "regression"
    form, _ = infer_with_doubts(values, "a.csv", "multi_label")
    assert form.lists is not None
    assert form.lists.split("1,5") == ["1", "5"]


def test_codes_joined_by_commas_are_several_labels() -> None:
    form, doubts = infer_with_doubts(["1", "2", "3", "1,2,3", "2,3"], "a.csv")
    assert (form.kind, len(doubts)) == ("multi_label", 1)


def test_the_user_has_the_last_word() -> None:
    joined = ["a", "b", "a,b"] * 3
    assert infer(joined, "a.csv") == "multi_label"
    form, doubts = infer_with_doubts(joined, "a.csv", "single_label")
    assert (form, doubts) == (LabelForm("single_label"), [])
    assert infer_with_doubts(["a|b", "c"], "a.csv", "single_label")[0] == LabelForm("single_label")
    assert infer(["1", "2"], "a.csv", "regression") == "regression"
    assert infer([["a"], ["b", "c"]], kind="single_label") == "single_label"


def test_one_label_in_each_list_may_be_a_single_label_task() -> None:
    for values in ([["a"], ["b"]], [[0, 1, 0], [0, 0, 1]], ["['a']", "['b']"]):
        form, _ = infer_with_doubts(values, kind="single_label")
        assert form.lists is not None
        assert [len(form.lists.split(value) or ()) for value in values] == [1, 1]
    assert infer_with_doubts(["['a']", "['a', 'b']"], kind="single_label")[0].lists is None


def test_a_form_that_is_no_ordinary_one_has_a_note() -> None:
    notes = [
        infer_with_doubts(values, "a.csv")[0].note
        for values in (["a", "b"], ["a,b", "a", "b"], ["['a']", "[]"], ["[0, 1, 1]", "[1, 0, 0]"])
    ]
    assert notes == [
        "",
        "labels joined by ','",
        "a list like ['a', 'b']",
        "vectors of 0 and 1, whose places are the labels 0 to 2",
    ]


def test_pairs_of_codes_are_no_decimals() -> None:
    """No row names a code twice, while decimals repeat a digit in a tenth of the rows."""
    pairs = [f"{one},{other}" for one in range(5) for other in range(5)]
    codes = [pair for pair in pairs if pair[0] != pair[2]] * 3
    sentence = (
        r"row 1, .*'0,1' may be a number with a decimal comma \(--kind regression\), or two la"
    )
    with pytest.raises(DataError, match=sentence):
        infer(codes, "a.csv")
    assert infer(codes, "a.csv", "regression") == "regression"
    form, _ = infer_with_doubts(codes, "a.csv", "multi_label")
    assert form.lists is not None
    assert form.lists.split("0,3") == ["0", "3"]
    for sound in (pairs * 3, [f"{n // 2},{5 * (n % 2)}" for n in range(1, 11)] * 9):
        assert infer(sound, "a.csv") == "regression"


@pytest.mark.parametrize(
    ("values", "name", "hint"),
    [
        ([0.5, 1, "1.5", 2.5], "a.jsonl", "it is a text (--kind regression reads such texts as"),
        (["0,5", "1,5", "3.10"], "a.csv", "they have a decimal comma; mend"),
        (["0.5", "1.5", "3,10"], "a.csv", "they have a decimal point; mend"),
    ],
)
def test_a_number_that_is_written_otherwise_is_named(
    values: list[Any], name: str, hint: str
) -> None:
    with pytest.raises(DataError) as caught:
        infer(values, name)
    assert f"is not a number, though most labels here are: {hint}" in str(caught.value)
