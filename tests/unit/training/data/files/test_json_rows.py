"""JSON Lines and arrays of objects are read, and what is wrong with a line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.data.files.columns import Columns
from training.data.files.json_rows import read_json
from training.errors import DataError

WANTED = ("text", "label")
ROWS = [{"text": "a", "label": 1}, {"label": ["x"], "text": "b\n", "more": None}]
VALUES = {"text": ["a", "b\n"], "label": [1, ["x"]]}


def write(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def load(path: Path) -> Columns:
    return read_json(path, WANTED)


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path)
    return caught.value


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
def test_lines_and_arrays_have_the_same_rows(tmp_path: Path, name: str, start: str) -> None:
    lines = "\r\n".join(json.dumps(row) for row in ROWS)
    for content in (lines, json.dumps(ROWS), json.dumps(ROWS, indent=2)):
        columns = load(write(tmp_path, name, start + content))
        assert (columns.values, columns.num_rows) == (VALUES, 2)
        assert columns.reading_notes == (f"{name}: 2 rows",)
        assert not columns.is_text_only


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "b", "label":', "line 3 is not JSON (Expecting value at character 23)"),
        ("text", "line 3 is not JSON"),
        ('{"text": "b", "label": ' + "1" * 5000 + "}", "line 3 is not JSON (nested too deeply, or"),
        ("[" * 200_000, "line 3 is not JSON (nested too deeply, or"),
        ('{"text": "b", "label": 1, "label": 2}', "'label': occurs more than once in this row"),
        ('{"text": "b", " label": 1, "label ": 2}', "'label': occurs more than once in this"),
        ('["b", 2]', "line 3 holds ['b', 2]; each row must be one object"),
        ('{"txt": "b", "label": 2}', "column 'text': missing; the row has txt, label. Did you"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"text": "a", "label": 1}}\n\n{line}\n')
    error = refused(path)
    assert error.row == 2
    assert problem in str(error)


def test_other_keys_may_be_repeated(tmp_path: Path) -> None:
    content = '{"text": "a", "label": 1, "id": 1, "id": 2}\n'
    assert load(write(tmp_path, "a.jsonl", content)).values == {"text": ["a"], "label": [1]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{\n"text": "a",\n"label": }', "line 1 is not JSON"),
        (
            '[{"text": "a", "label": 1},\n {"text": ]',
            "an array that is not JSON (Expecting value at line 2",
        ),
        ('["a", "b"]', "item 1 of the array holds 'a'"),
        ('{"text": {"0": "a"}, "label": {"0": 1}}', "one object with whole columns"),
        ('{"text": ["a", "b"], "label": [1, 2]}', "orient='records', lines=True"),
        ('{"data": [{"text": "a"}]}', "Its 'data' is a list of objects: write that list alone"),
        ('{"meta": {"text": "a"}}', "'text' is inside of 'meta': write it beside the other keys"),
        ('{\n"version": 1,\n"rows": [{"text": "a"}]\n}', "Its 'rows' is a list of objects"),
        ("3", "line 1 holds 3;"),
    ],
)
def test_other_json_is_named(tmp_path: Path, content: str, problem: str) -> None:
    assert problem in str(refused(write(tmp_path, "a.json", content)))


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    assert load(write(tmp_path, "a.json", "[]")).num_rows == 0
    assert load(write(tmp_path, "a.json", " \n")).num_rows == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('["a", 1]\n["b", 2]\n', "line 1 holds ['a', 1]; each row must be one object"),
        (
            '{"0": {"text": "a"}, "1": {"text": "b"}}',
            "one object with all rows. In pandas: to_json",
        ),
        ('{"columns": ["text"], "data": [["a"]]}', "one object with all rows. In pandas: to_json"),
    ],
)
def test_tables_in_other_forms_are_named(tmp_path: Path, content: str, problem: str) -> None:
    assert problem in str(refused(write(tmp_path, "a.json", content)))


def test_joined_files_may_have_a_mark_in_between(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": 1}) for text in "ab"]
    path = write(tmp_path, "a.jsonl", f"\ufeff{lines[0]}\n\ufeff{lines[1]}\n")
    assert load(path).values["text"] == ["a", "b"]
