"""Files become a custom task: the whole way from file to rows."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltas import TaskSpec
from training.data.custom import CustomTask, load_files
from training.data.rows import TaskData
from training.errors import DataError

ROWS = [
    {"text": f"text {n}", "other": f"other {n}", "y": "yes" if n % 4 else "no"} for n in range(40)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One of the three formats, by the path's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(train: Path, validation: Path | None = None, **changes: Any) -> TaskData:
    options: dict[str, Any] = {"text_columns": ["text"], "label_column": "y", "name": "mine"}
    options |= changes
    options["text_columns"] = tuple(options["text_columns"])
    return load_files(train, validation, CustomTask(**options))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_same_rows_in_every_format(tmp_path: Path, ending: str) -> None:
    data = load(write(tmp_path / f"train.{ending}", ROWS), text_columns=["text", "other"])
    assert data.task.name == "mine"
    assert data.task.kind == "single_label"
    assert data.task.labels == ("no", "yes")
    assert data.task.text_fields == ("text", "other")
    assert data.task.metrics == ("accuracy", "f1")
    assert data.source == "files"
    assert (
        data.digest == load(write(tmp_path / "b.csv", ROWS), text_columns=["text", "other"]).digest
    )
    for texts, label in zip(data.train.texts, data.train.labels, strict=True):
        number = int(texts[0].split()[1])
        assert texts == (f"text {number}", f"other {number}")
        assert label == (1 if number % 4 else 0)


def test_a_fifth_of_each_label_is_held_out(tmp_path: Path) -> None:
    data = load(write(tmp_path / "train.csv", ROWS))
    validation = data.validation["validation"]
    assert Counter(data.train.labels) == {0: 8, 1: 24}
    assert Counter(validation.labels) == {0: 2, 1: 6}
    assert not set(data.train.texts) & set(validation.texts)
    assert data.validation_notes == {"validation": "8 rows held out of train.csv (seed 0)"}
    assert load(tmp_path / "train.csv") == data


def test_rows_with_the_same_text_stay_on_one_side(tmp_path: Path) -> None:
    data = load(write(tmp_path / "train.jsonl", ROWS[:20] * 3))
    validation = data.validation["validation"]
    assert not set(data.train.texts) & set(validation.texts)
    assert len(data.train) + len(validation) == 60


def test_a_label_with_one_row_stays_in_train(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, {"text": "only", "other": "", "y": "rare"}]
    data = load(write(tmp_path / "train.jsonl", rows))
    assert data.task.metrics == ("accuracy", "macro_f1")
    assert ("only",) in data.train.texts
    assert "can't be evaluated: rare" in caplog.text


def test_two_rows_are_too_few_to_hold_any_out(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": "a", "y": 1}, {"text": "b", "y": 2}])
    with pytest.raises(DataError, match=r"2 rows with 2 distinct texts are too few to .* --v"):
        load(train)
    same = [{**row, "text": "the same"} for row in ROWS]
    with pytest.raises(DataError, match=r"40 rows with 1 distinct text are too few"):
        load(write(tmp_path / "same.jsonl", same))


def test_a_validation_file_may_have_another_format(tmp_path: Path) -> None:
    data = load(
        write(tmp_path / "train.csv", ROWS[:30]), write(tmp_path / "dev.parquet", ROWS[30:])
    )
    assert len(data.train) == 30
    assert len(data.validation["validation"]) == 10
    assert data.validation_notes == {}


def test_what_was_read_is_told(tmp_path: Path) -> None:
    data = load(write(tmp_path / "t.csv", ROWS), write(tmp_path / "v.jsonl", ROWS[:5]))
    assert data.reading_notes == ("t.csv: 40 rows, fields separated by commas", "v.jsonl: 5 rows")
    assert data.warnings == ()


def test_rows_in_both_files_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = load(write(tmp_path / "t.csv", ROWS), write(tmp_path / "v.csv", ROWS[:5]))
    note = "5 of 5 validation rows are in the train file too"
    assert data.validation_notes == {"validation": note}
    assert note in caplog.text


def test_fractions_make_a_regression_task(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "y": n / 8} for n in range(20)]
    for ending in ("csv", "jsonl", "parquet"):
        data = load(write(tmp_path / f"train.{ending}", rows))
        assert data.task.kind == "regression"
        assert data.task.labels == ()
        assert data.task.metrics == ("pearson", "spearman", "mse")
        assert len(data.validation["validation"]) == 4
        assert all(isinstance(label, float) for label in data.train.labels)


def test_integers_become_numbers_only_when_asked(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [{"text": f"t {n}", "y": n % 5} for n in range(40)])
    assert load(train).task.labels == ("0", "1", "2", "3", "4")
    assert set(load(train, kind="regression").train.labels) == {0.0, 1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_lists_make_a_multi_label_task(tmp_path: Path, ending: str) -> None:
    labels = [["a"], ["a", "b"], [], ["c", "b"]] * 5
    rows = [
        {"text": f"text {n}", "y": "|".join(names) if ending == "csv" else names}
        for n, names in enumerate(labels)
    ]
    data = load(write(tmp_path / f"train.{ending}", rows))
    assert data.task.kind == "multi_label"
    assert data.task.labels == ("a", "b", "c")
    assert data.task.metrics == ("micro_f1", "macro_f1")
    for (text,), cells in zip(data.train.texts, data.train.labels, strict=True):
        names = labels[int(text.split()[1])]
        assert cells == [int(label in names) for label in ("a", "b", "c")]


def test_the_task_fits_a_manifest(tmp_path: Path) -> None:
    task = load(write(tmp_path / "train.csv", ROWS)).task
    spec = TaskSpec(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        text_fields=task.text_fields,
        max_length=64,
    )
    assert spec.num_outputs == 2


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (7, "7 is not a text (1 more such rows follow)"),
        ("half a \ud800 pair", "is not a text"),
    ],
)
def test_a_row_with_something_else_than_a_text_is_named(
    tmp_path: Path, bad: Any, problem: str
) -> None:
    rows = [*ROWS[:5], {"text": bad, "y": "yes"}, *ROWS[5:], {"text": bad, "y": "no"}]
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "train.jsonl", rows))
    assert (caught.value.row, caught.value.column) == (6, "text")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "blank", [None, "", "  ", "\u200b", "\ue000\uf8ff", "\ufffd", "\U0010ffff"]
)
def test_rows_without_a_text_are_left_out_with_a_warning(tmp_path: Path, blank: Any) -> None:
    rows = [*ROWS[:5], {"text": blank, "y": "yes"}, *ROWS[5:], {"text": blank, "y": "no"}]
    whole, data = (
        load(write(tmp_path / f"{n}.jsonl", given)) for n, given in enumerate((ROWS, rows))
    )
    assert data.digest == whole.digest
    assert (
        "1.jsonl: 2 rows without a text left out (the first is row 6, column 'text')"
        in data.warnings
    )
    assert not whole.warnings


def test_rows_without_a_text_have_no_say_in_the_labels(tmp_path: Path) -> None:
    """A spreadsheet's total row has no text, and its label is none."""
    rows = [
        *ROWS[:5],
        {"text": "", "other": "", "y": "Total"},
        {"text": "", "other": "-", "y": ""},
        *ROWS[5:],
    ]
    data = load(write(tmp_path / "a.csv", rows))
    assert data.task.labels == ("no", "yes")
    assert data.train.number(len(data.train) - 1) > 40
    (warning,) = data.warnings
    assert "2 rows without a text left out (the first is row 6" in warning
    bad = [*rows[:-1], {"text": "last", "other": "", "y": ""}]
    with pytest.raises(DataError, match="no label") as caught:
        load(write(tmp_path / "b.csv", bad))
    assert caught.value.row == 42


def test_pairs_need_both_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS[:5], {**ROWS[5], "other": None}, *ROWS[6:]])
    (warning,) = load(path, text_columns=["text", "other"]).warnings
    assert "1 row without a text left out (the first is row 6, column 'other')" in warning
    halves = [{**row, "text" if n % 2 else "other": ""} for n, row in enumerate(ROWS)]
    with pytest.raises(DataError, match="every row lacks one of its texts"):
        load(write(tmp_path / "b.jsonl", halves), text_columns=["text", "other"])


def test_a_column_without_any_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row has a text here; is this the right column\?"):
        load(write(tmp_path / "train.jsonl", [{"text": "", "y": row["y"]} for row in ROWS]))


def test_an_unknown_label_in_validation_names_its_row(tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.csv", [{"text": "a", "y": "yes"}, {"text": "b", "y": "maybe"}])
    with pytest.raises(DataError, match="label 'maybe' does not occur in the train") as caught:
        load(write(tmp_path / "train.csv", ROWS), dev)
    assert (caught.value.path, caught.value.row) == (dev, 2)


def test_no_path_of_this_machine_gets_into_the_notes(tmp_path: Path) -> None:
    data = load(write(tmp_path / "train.csv", ROWS))
    assert str(tmp_path) not in json.dumps([data.note, data.validation_notes])
