"""Tables of texts: read or refused with a sentence, measured, and safe for spreadsheets."""

from __future__ import annotations

import csv
import io
import shlex

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from frontend.models import Prediction
from frontend.views.rows import (
    MAX_ROWS,
    Labelled,
    TableError,
    accuracy,
    chunks,
    confusion,
    decision,
    fit_command,
    free_name,
    label_column,
    read_table,
    right_and_wrong,
    spreadsheet_csv,
    text_column,
)
from training.fit import parse_arguments

GOLD = ["a", "b", "b", "c", "a", "c"]
ONE = ["a", "b", "a", "c", "b", "c"]
OTHER = ["b", "b", "b", "c", "b", ""]


@pytest.mark.parametrize(
    "data",
    [
        b'text,label\n"cold, very cold",bad\nfine,good\n',
        b'text;label\r\n"cold, very cold";bad\r\nfine;good\r\n',
        b'"text";"label"\n"cold, very cold";bad\nfine;good\n',
        "text\tlabel\ncold, very cold\tbad\n\nfine\tgood".encode("utf-16"),
        b'\xef\xbb\xbftext,label\n"cold, very cold",bad\n,\nfine,good\n',
    ],
    ids=["comma", "semicolon", "semicolon, quoted commas", "utf-16 tab", "byte order mark"],
)
def test_tables_in_many_forms(data: bytes) -> None:
    table = read_table(data)
    assert table.to_dict("list") == {"text": ["cold, very cold", "fine"], "label": ["bad", "good"]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b",,\n,,\n", "is empty"),
        (b"text,label\n", "no row below"),
        (b"text,text\na,b\n", "Two columns are called “text”"),
        (b"text,\na,b\n", "Column 2 has no name"),
        (b"text,label\na,b\nc,d,e\n", "Line 3 has 3 cells, the header has 2"),
        (b'text,label\n"a,b\n', "quote"),
        (b"text\ncaf\xe9\n", "not in UTF-8 (byte 8)"),
        (b"text\n" + b"x" * 20_000_000, "has 20 MB; this page takes 20"),
        (b"PK\x03\x04\0\0\0", "not a text file"),
        (b"text\n" + b"x\n" * (MAX_ROWS + 1), "more rows than the 20,000"),
    ],
)
def test_a_bad_table_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(TableError) as caught:
        read_table(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_columns_that_are_meant() -> None:
    table = read_table(b"id,text,label\n1,a long text,good\n2,another text,bad\n3,,good\n")
    assert text_column(table) == "text"
    assert label_column(table, ("good", "bad", "fine")) == "label"
    assert label_column(table, ("x", "y")) is None
    assert label_column(table, ()) is None


@pytest.mark.parametrize(("num_strategies", "largest"), [(1, 64), (3, 21), (64, 1), (100, 1)])
def test_every_row_is_in_one_chunk(num_strategies: int, largest: int) -> None:
    """A request has at most 64 rows, counted once for each strategy."""
    parts = list(chunks(130, num_strategies))
    assert [place for part in parts for place in part] == list(range(130))
    assert max(map(len, parts)) == largest
    assert not list(chunks(0, num_strategies))


def prediction(kind: str, labels: tuple[str, ...], scores: dict[str, float]) -> Prediction:
    value = 2.5 if kind == "regression" else None
    return Prediction("t", "bitfit", "0", kind, labels, scores, value)


def test_doubt_is_high_where_the_answer_is_least_sure() -> None:
    single = prediction("single_label", ("a",), {"a": 0.6, "b": 0.4})
    several = prediction("multi_label", ("a", "b"), {"a": 0.9, "b": 0.55, "c": 0.01})
    number = prediction("regression", (), {})
    found = Labelled("bitfit", (single, several, number, None))
    assert found.labels == ["a", "a, b", "2.5", ""]
    assert found.doubts[:2] == pytest.approx([0.4, 0.45])
    assert found.doubts[2:] == [None, None]
    unsure = Prediction("t", "s", "0", "single_label", ("a",), {"a": 0.5}, None, is_answered=False)
    assert decision(unsure) == ""


def test_measures_are_those_of_scikit_learn() -> None:
    assert accuracy(ONE, GOLD) == accuracy_score(GOLD, ONE)
    table = confusion(ONE, GOLD)
    assert table.to_numpy().tolist() == confusion_matrix(GOLD, ONE, labels=["a", "b", "c"]).tolist()
    assert right_and_wrong(ONE, OTHER, GOLD) == [0, 5]
    assert right_and_wrong(OTHER, ONE, GOLD) == [2]
    assert accuracy([], []) == 0.0


def test_no_cell_is_a_formula() -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "a, b", 'say "x"']
    rows = list(csv.reader(io.StringIO(spreadsheet_csv(pd.DataFrame({"text": texts})))))
    assert [row[0] for row in rows[1:]] == [*(f"'{text}" for text in texts[:5]), *texts[5:]]


def test_no_name_of_a_column_is_a_formula() -> None:
    table = pd.DataFrame({"=1+1": ["a"], "text": ["b"]})
    assert spreadsheet_csv(table).splitlines()[0] == "'=1+1,text"


def test_commas_in_a_quoted_name_separate_nothing() -> None:
    table = read_table(b'"text, or title, if any";label\nfine;good\n')
    assert list(table.columns) == ["text, or title, if any", "label"]


def test_a_new_column_takes_the_name_of_none() -> None:
    assert free_name("doubt", ["text"]) == "doubt"
    assert free_name("doubt", ["text", "doubt", "doubt 2"]) == "doubt 3"


def test_the_command_is_one_that_training_takes() -> None:
    command = fit_command(("a text", "b"), "correct label", "sst2-corrected", "single_label")
    config = parse_arguments(shlex.split(command)[3:])
    assert config.name == "sst2-corrected"
    assert config.label_column == "correct label"
