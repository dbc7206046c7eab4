"""Tables of texts: read or refused with a sentence, measured, and safe for spreadsheets."""

from __future__ import annotations

import csv
import io
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from frontend.models import Prediction, TaskInfo
from frontend.views.rows import (
    MAX_ROWS,
    Labelled,
    TableError,
    TrainingRows,
    accuracy,
    chunks,
    confusion,
    decision,
    free_name,
    given_label,
    label_column,
    mistakes,
    read_table,
    right_and_wrong,
    spreadsheet_csv,
    text_column,
)
from training.data.custom import CustomTask, load_files, split_names
from training.data.tasks import Task
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
    found = mistakes(["b", "b", "b", "c"], ["a", "b", "a", "a"])
    assert found.to_numpy().tolist() == [[2, "a", "b"], [1, "a", "c"]]
    assert len(mistakes(GOLD, GOLD)) == 0


def test_no_cell_is_a_formula() -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "a, b", 'say "x"']
    rows = list(csv.reader(io.StringIO(spreadsheet_csv(pd.DataFrame({"text": texts})))))
    assert [row[0] for row in rows[1:]] == [*(f"'{text}" for text in texts[:5]), *texts[5:]]


def test_a_number_is_no_formula() -> None:
    assert spreadsheet_csv(pd.DataFrame({"value": [-0.5]})).splitlines()[1] == "-0.5"


def test_no_name_of_a_column_is_a_formula() -> None:
    table = pd.DataFrame({"=1+1": ["a"], "text": ["b"]})
    assert spreadsheet_csv(table).splitlines()[0] == "'=1+1,text"


def test_commas_in_a_quoted_name_separate_nothing() -> None:
    table = read_table(b'"text, or title, if any";label\nfine;good\n')
    assert list(table.columns) == ["text, or title, if any", "label"]


def test_a_new_column_takes_the_name_of_none() -> None:
    assert free_name("doubt", ["text"]) == "doubt"
    assert free_name("doubt", ["text", "doubt", "doubt 2"]) == "doubt 3"


# Cells that spreadsheets, readers of CSV and shells take for something else than a text.
HOSTILE = (
    "=1+1",
    "-5",
    "+49 30 123",
    "@x",
    "'quoted",
    "'=1+1",
    'say "x", twice',
    "two\nlines",
    "a\rb",
    "a\r\nb",
    "a\tb; c | d",
    "\t=1",
    "NA",
    "null",
    "007",
    "1,234.50",
    "[1, 2]",
    "🙂\u200d🔥 ü\u2028",
    "  blanks  ",
    "\\",
    "x" * 20_000,
)


def task_info(kind: str, labels: tuple[str, ...]) -> TaskInfo:
    return TaskInfo("t" * 128, kind, labels, ("text",), 64, ("bitfit",))


def trained_on(rows: TrainingRows, folder: Path) -> tuple[Task, list[tuple[str, ...]], list[Any]]:
    """Return the task, texts and labels that the command reads from the download."""
    config = parse_arguments(shlex.split(rows.command)[3:])
    path = folder / str(config.train_file)
    path.write_bytes(rows.json_lines.encode())
    assert config.text_columns
    assert config.label_column
    assert config.name
    custom = CustomTask(
        split_names(config.text_columns), config.label_column, config.name, config.kind
    )
    found = load_files(path, path, custom)
    return found.task, list(found.train.texts), list(found.train.labels)


@pytest.mark.parametrize(
    ("kind", "labels", "given"),
    [
        ("single_label", ("007", "=1+1, 2"), ["007", "=1+1, 2"]),
        ("multi_label", ("a, b", "a", "=c"), [["a, b"], ["a", "=c"], []]),
        ("regression", (), [-1.5, 2.0, 1234.5]),
    ],
)
@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (["text"], ("text",)),
        (["a, b", 'the "label"'], ("a, b", 'the "label"')),
        (["-x", "two\nlines"], ("-x", "two lines")),
        (["text", "text"], ("text", "text 2")),
    ],
    ids=["one", "pair", "option", "the same column twice"],
)
def test_what_is_corrected_trains_exactly_as_it_was_pasted(
    kind: str,
    labels: tuple[str, ...],
    given: list[Any],
    columns: list[str],
    fields: tuple[str, ...],
    tmp_path: Path,
) -> None:
    """The whole way: pasted CSV, corrected cells, the download, the command, training's reader."""
    pasted = io.StringIO()
    lines = list(zip(HOSTILE, reversed(HOSTILE), strict=True))
    csv.writer(pasted).writerows([("one", "other"), *lines])
    table = read_table(pasted.getvalue().encode())
    cells = [table[name].tolist() for name in ("one", "other")[: len(fields)]]
    texts = list(zip(*cells, strict=True))
    answers = [given_label(kind, given[at % len(given)]) for at in range(len(texts))]
    rows = TrainingRows(task_info(kind, labels), [*columns, "correct label"], texts, answers)
    task, read, codes = trained_on(rows, tmp_path)
    assert read == [line[: len(fields)] for line in lines]
    assert task.kind == kind
    assert task.text_fields == fields
    names = {label: code for code, label in enumerate(task.labels)}
    assert set(names) == set(labels)
    for answer, code in zip(answers, codes, strict=True):
        if isinstance(answer, list):
            assert [name for name, bit in zip(names, code, strict=True) if bit] == sorted(answer)
        else:
            assert code == (names[answer] if isinstance(answer, str) else answer)


def test_rows_without_a_label_are_no_rows_to_train_on() -> None:
    cells = ["a", "", None, float("nan"), pd.NA]
    labels = [given_label("single_label", cell) for cell in cells]
    assert labels == ["a", None, None, None, None]
    rows = TrainingRows(task_info("single_label", ("a", "b")), ("text", "label"), ["x"] * 5, labels)
    assert rows.num_rows == 1
    assert rows.json_lines == '{"text": "x", "label": "a"}\n'
    assert given_label("multi_label", []) == [], "no label is an answer, too"
    assert given_label("multi_label", None) is None
    assert given_label("multi_label", None, ["a"]) == [], "an emptied cell is such an answer"
    assert [given_label("regression", cell) for cell in (2, float("nan"), None)] == [
        2.0,
        None,
        None,
    ]
