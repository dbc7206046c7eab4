"""A label column gives a kind, names and codes; other values are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from deltas.manifest import TaskKind
from training.data.columns import Columns
from training.data.labels import collect_labels, encode_labels, infer_kind
from training.errors import DataError


def column(values: list[Any], name: str = "a.jsonl") -> Columns:
    return Columns(Path(name), len(values), {"label": values})


def infer(values: list[Any], name: str = "a.jsonl") -> str:
    return infer_kind(column(values, name), "label")


def collect(values: list[Any], kind: TaskKind = "single_label", name: str = "a.jsonl") -> Any:
    return collect_labels(column(values, name), "label", kind)


def encode(
    values: list[Any], kind: TaskKind, labels: tuple[str, ...], name: str = "a.jsonl"
) -> Any:
    return encode_labels(column(values, name), "label", kind, labels)


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


def test_names_are_sorted_integers_by_value() -> None:
    assert collect(["b", "a", "b", "a"]) == ("a", "b")
    assert collect([10, 9, 10, 9, -1]) == ("-1", "9", "10")
    assert collect(["10", "9", "09", "9"], name="a.csv") == ("09", "9", "10")
    assert collect([True, False, True]) == ("false", "true")
    assert collect([1.0, 2.0, 1.0]) == ("1", "2")
    assert collect([["b", "a"], [], ["c", "c"]], "multi_label") == ("a", "b", "c")
    assert collect(["b|a", "", "c"], "multi_label", "a.csv") == ("a", "b", "c")
    assert collect([1.5, 2], "regression") == ()


def test_codes_are_positions() -> None:
    assert encode(["b", " a "], "single_label", ("a", "b")) == [1, 0]
    assert encode([["c", "a"], []], "multi_label", ("a", "b", "c")) == [[1, 0, 1], [0, 0, 0]]
    assert encode(["c|a", " "], "multi_label", ("a", "b", "c"), "a.csv") == [[1, 0, 1], [0, 0, 0]]
    assert encode(["1.5", "-2"], "regression", (), "a.csv") == [1.5, -2.0]
    assert encode([1, 2.5], "regression", ()) == [1.0, 2.5]


def test_a_label_unknown_to_the_train_file_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        encode(["yes", "Yes!", "perhaps"], "single_label", ("no", "yes"))
    assert (caught.value.row, caught.value.column) == (2, "label")
    assert str(caught.value) == (
        "a.jsonl, row 2, column 'label': label 'Yes!' does not occur in the train file "
        "(1 more such labels follow); allowed: no, yes. Did you mean 'yes'?"
    )


@pytest.mark.parametrize(
    "value", [None, "", "  ", float("nan"), {"a": 1}, ["a"], "x" * 300, b"\xff"]
)
def test_a_value_that_can_not_be_one_label_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="row 3, column 'label'"):
        collect(["a", "b", value])


@pytest.mark.parametrize("value", ["a", None, 1, [None], [["a"]], [""]])
def test_a_value_that_can_not_be_several_labels_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="row 2, column 'label'"):
        collect([["a"], value], "multi_label")


@pytest.mark.parametrize("value", [None, "much", "", float("inf"), float("nan"), True, [1.0]])
def test_a_value_that_can_not_be_a_number_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 2, column 'label': .* is not a finite number"):
        encode([0.5, value], "regression", ())


@pytest.mark.parametrize("value", [1e19, -1e300, "1e30"])
def test_a_number_too_large_to_be_learned_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"row 2, column 'label': .* is too large; numbers from"):
        encode([0.5, value], "regression", ())


def test_one_label_teaches_nothing() -> None:
    with pytest.raises(DataError, match=r"1 distinct label \(a\); at least 2 needed"):
        collect(["a", "a"])
    assert collect([["a"], []], "multi_label") == ("a",)


def test_one_number_teaches_nothing() -> None:
    with pytest.raises(DataError, match=r"column 'label': every row has the number 2.5; at least"):
        collect([2.5, 2.5], "regression")


@pytest.mark.parametrize(
    ("values", "kind", "name"),
    [
        ([None, None], "single_label", "a.jsonl"),
        (["", " "], "single_label", "a.csv"),
        ([None, None], "regression", "a.parquet"),
        (["", ""], "regression", "a.csv"),
        ([[], []], "multi_label", "a.jsonl"),
        (["", ""], "multi_label", "a.csv"),
    ],
)
def test_a_column_without_any_label_is_refused(
    values: list[Any], kind: TaskKind, name: str
) -> None:
    with pytest.raises(DataError) as caught:
        collect(values, kind, name)
    assert str(caught.value) == (
        f"{name}, row 1, column 'label': no row has a label here; is this the right column?"
    )


def test_rows_without_a_label_are_counted() -> None:
    with pytest.raises(DataError) as caught:
        collect(["a", None, "b", "", "  "])
    assert str(caught.value) == (
        "a.jsonl, row 2, column 'label': no label (2 more such rows follow); fill it in or drop "
        "the row"
    )


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


def test_a_data_set_states_the_order_of_its_labels() -> None:
    stated = ("worse", "better", "never", "as good")
    values = {"label": ["as good", "better", "worse"] * 2}
    columns = Columns("data set a, split train", 6, values, stated)
    assert collect_labels(columns, "label", "single_label") == ("worse", "better", "as good")


def test_a_text_column_is_not_taken_for_labels() -> None:
    with pytest.raises(
        DataError, match=r"30 distinct labels in 30 rows; is this the label column\?"
    ):
        collect([f"review {n}" for n in range(30)])
    with pytest.raises(DataError, match="1,001 distinct labels in 2,002 rows"):
        collect([str(n) for n in range(1001)] * 2)
    assert len(collect([f"label {n}" for n in range(1000)] * 2)) == 1000


def test_many_labels_that_all_repeat_are_labels() -> None:
    names = [[f"a{n}", f"a{n + 1}"] for n in range(0, 24, 2)]
    twice = [[f"a{n % 24}", f"a{(n + 1) % 24}"] for n in range(1, 25, 2)]
    assert len(collect_labels(column([*names, *twice]), "label", "multi_label")) == 24


def test_half_a_surrogate_pair_is_not_a_label() -> None:
    with pytest.raises(DataError, match=r"row 2.*surrogate"):
        collect_labels(column(["a", "b\ud800"]), "label", "single_label")


def test_a_label_that_occurs_once_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        collect(["a", "a", "b", "b", "c"])
    assert (
        "row 5, column 'label': 1 of 3 labels occur in one row only and can't be evaluated: c"
        in caplog.text
    )
