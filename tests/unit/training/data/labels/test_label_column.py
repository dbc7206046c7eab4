"""A label column gives a kind, names and codes; other values are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltas.manifest import TaskKind
from training.data.files.columns import Columns
from training.data.labels.forms import LabelForm
from training.data.labels.label_column import (
    collect_labels,
    encode_labels,
    join_label_columns,
    name_classes,
)
from training.data.labels.lists import ListForm
from training.errors import DataError

# Two names, spelled with a combining accent and with characters that are not seen.
LOOK_THE_SAME = [
    "caf\u00e9",
    "cafe\u0301",
    "caf\u00e9\u200b",
    "caf\u00e9\u00a0",
    "tea",
    "tea\ufeff",
]


def column(values: list[Any], name: str = "a.jsonl") -> Columns:
    is_text_only = name.endswith(".csv")
    return Columns(Path(name), len(values), {"label": values}, is_text_only)


def form(kind: TaskKind, name: str = "a.jsonl") -> LabelForm:
    """The ordinary form of a kind."""
    lists = ListForm("|" if name.endswith(".csv") else "") if kind == "multi_label" else None
    return LabelForm(kind, lists)


def collect(values: list[Any], kind: TaskKind = "single_label", name: str = "a.jsonl") -> Any:
    return collect_labels(column(values, name), "label", form(kind, name), warn=lambda _: None)


def encode(
    values: list[Any], kind: TaskKind, labels: tuple[str, ...], name: str = "a.jsonl"
) -> Any:
    return encode_labels(column(values, name), "label", form(kind, name), labels)


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


def test_a_data_set_states_the_order_of_its_labels() -> None:
    stated = ("worse", "better", "never", "as good")
    values = {"label": ["as good", "better", "worse"] * 2}
    columns = Columns("data set a, split train", 6, values, class_names={"label": stated})
    found = collect_labels(columns, "label", form("single_label"), warn=lambda _: None)
    assert found == ("worse", "better", "as good")


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
    assert len(collect([*names, *twice], "multi_label")) == 24


def test_half_a_surrogate_pair_is_not_a_label() -> None:
    with pytest.raises(DataError, match=r"row 2.*surrogate"):
        collect(["a", "b\ud800"])


def test_names_that_look_exactly_the_same_are_one_label() -> None:
    assert collect(LOOK_THE_SAME * 2) == ("caf\u00e9", "tea")
    assert encode(["cafe\u0301", "\u00a0tea"], "single_label", ("caf\u00e9", "tea")) == [0, 1]


def test_doubts_are_handed_to_the_caller() -> None:
    found: list[str] = []
    values = [[0, 1, 0], [0, 0, 0]] * 2
    lists = LabelForm("multi_label", ListForm(width=3))
    assert collect_labels(column(values), "label", lists, found.append) == ("1",)
    assert found == [
        "a.jsonl, column 'label': no row has the label 0, 2, so it can't be learnt or answered"
    ]


def test_an_item_without_a_name_is_named_with_its_list() -> None:
    for item in (None, "", "\u200b"):
        with pytest.raises(DataError, match=r"row 2.*\['a', .*\] has an item without a name; take"):
            collect([["a"], ["a", item]], "multi_label")
    with pytest.raises(DataError, match="row 2, column 'label': no list; write an empty one"):
        collect([["a"], None], "multi_label")


def test_codes_of_class_labels_get_their_names() -> None:
    values: dict[str, list[Any]] = {"label": [0, 1, -1, None], "more": [[1, 0], [], [1], [0]]}
    names = {"label": ("no", "yes"), "more": ("a", "b")}
    columns = Columns(Path("a.parquet"), 4, values, class_names=names)
    assert name_classes(columns, "label").values["label"] == ["no", "yes", None, None]
    assert name_classes(columns, "more").values["more"] == [["b", "a"], [], ["b"], ["a"]]
    assert name_classes(columns, "label").values["more"] == values["more"]
    columns.values["label"][1] = 2
    with pytest.raises(DataError, match=r"row 2, column 'label': 2 is no code .* names 2"):
        name_classes(columns, "label")


def test_columns_of_zeros_and_ones_become_lists_of_their_names() -> None:
    values = {"text": ["t", "u", "v"], "joy": ["1", "0", "0"], "1": ["true", "0.0", "1"]}
    columns = Columns(Path("a.csv"), 3, values, is_text_only=True)
    joined = join_label_columns(columns, ("joy", "1"), "joy,1")
    assert joined.values == {"text": ["t", "u", "v"], "joy,1": [["joy", "1"], [], ["1"]]}
    found = collect_labels(joined, "joy,1", form("multi_label"), warn=lambda _: None)
    assert found == ("joy", "1")


@pytest.mark.parametrize("value", ["2", "", "yes", None, 0.5, [1]])
def test_a_column_of_a_label_holds_zeros_and_ones_only(value: Any) -> None:
    columns = Columns(Path("a.jsonl"), 2, {"joy": [1, value], "fear": [0, 1]})
    with pytest.raises(DataError, match=r"row 2, column 'joy': .* is neither 0 nor 1.*joined by"):
        join_label_columns(columns, ("joy", "fear"), "joy,fear")


def test_rows_of_other_splits_have_the_form_of_the_train_rows() -> None:
    lists = LabelForm("multi_label", ListForm(width=3))
    assert encode_labels(column([[0, 1, 1]]), "label", lists, ("1", "2")) == [[1, 1]]
    with pytest.raises(DataError, match="is not a vector of 3 zeros and ones"):
        encode_labels(column([[0, 1]]), "label", lists, ("1", "2"))
    joined = LabelForm("multi_label", ListForm(","))
    assert encode_labels(column(["b,a", "a"], "a.csv"), "label", joined, ("a", "b")) == [
        [1, 1],
        [1, 0],
    ]
    commas = LabelForm("regression", decimal=",")
    assert encode_labels(column(["0,5", "1"], "a.csv"), "label", commas, ()) == [0.5, 1.0]
    with pytest.raises(DataError, match=r"'0.5' is not a finite number like those of the train"):
        encode_labels(column(["0.5"], "a.csv"), "label", commas, ())


def test_a_list_that_must_hold_one_label_holds_one() -> None:
    single = LabelForm("single_label", ListForm())
    assert encode_labels(column([["b"], ["a"]]), "label", single, ("a", "b")) == [1, 0]
    with pytest.raises(DataError, match="row 1, column 'label': 2 labels, while each row"):
        encode_labels(column([["b", "a"]]), "label", single, ("a", "b"))


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_number_that_is_missing_is_to_be_filled_in(value: Any) -> None:
    """As names, the column would have a row without a label: that is no remedy."""
    with pytest.raises(DataError) as caught:
        encode([0.5, value, 1, value], "regression", ())
    assert str(caught.value).endswith("(1 more such rows follow); fill it in or drop the row")


def test_another_decimal_mark_than_that_of_the_train_rows_is_named() -> None:
    with pytest.raises(DataError, match=r"its decimal mark is ',', that of the train rows '\.'"):
        encode(["1.5", "0,5"], "regression", (), "a.csv")
