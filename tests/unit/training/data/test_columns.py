"""Values arrive unchanged from CSV, JSONL and parquet, and broken files get clear errors."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.columns import read_columns
from training.errors import DataError

WANTED = ("text", "label")


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_columns(path, WANTED)
    return caught.value


def read(path: Path) -> dict[str, list[Any]]:
    return read_columns(path, WANTED).values


CSV = 'id,text,label\n1,"a, b",01\n2,"two\nlines",x\n\n3,"say ""hi""",NA\n'
CSV_VALUES = {"text": ["a, b", "two\nlines", 'say "hi"'], "label": ["01", "x", "NA"]}


def test_csv_keeps_every_text_unchanged(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path, "a.csv", CSV), WANTED)
    assert columns.values == CSV_VALUES
    assert columns.num_rows == 3
    assert columns.is_text_only


def test_csv_may_have_a_bom_other_line_ends_or_tabs(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.CSV", "\ufeff" + CSV)) == CSV_VALUES
    assert read(write(tmp_path, "b.csv", CSV.replace("\n", "\r\n"))) == {
        **CSV_VALUES,
        "text": ["a, b", "two\r\nlines", 'say "hi"'],
    }
    assert read(write(tmp_path, "c.tsv", "text\tlabel\na, b\tx\n")) == {
        "text": ["a, b"],
        "label": ["x"],
    }


def test_values_of_csv_are_never_guessed(tmp_path: Path) -> None:
    rows = ["2020-01-31", "1e5", "true", "null", ""]
    path = write(
        tmp_path, "a.csv", "text,label\n" + "".join(f"{row},0{n}\n" for n, row in enumerate(rows))
    )
    assert read(path) == {"text": rows, "label": [f"0{n}" for n in range(len(rows))]}


def test_jsonl_keeps_types(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": 1}\n\n{"label": ["x", "y"], "text": "2020-01-31", "more": 0}\n'
    for content in (lines, "\ufeff" + lines):
        columns = read_columns(write(tmp_path, "a.jsonl", content), WANTED)
        assert columns.values == {"text": ["a", "2020-01-31"], "label": [1, ["x", "y"]]}
        assert not columns.is_text_only


def test_parquet_keeps_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [[1, 2]]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == {"text": ["a"], "label": [[1, 2]]}


def test_bytes_and_decimals_of_parquet_become_texts_and_numbers(tmp_path: Path) -> None:
    table = {"text": [b"a", b"\xff", None], "label": [Decimal("0.25"), Decimal(2), None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == {
        "text": ["a", b"\xff", None],
        "label": [0.25, 2.0, None],
    }


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.xlsx", ""))
    assert "ends in .xlsx; known: .csv, .tsv, .jsonl, .ndjson, .parquet" in str(error)


def test_a_missing_file_gets_near_matches(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", CSV)
    error = refused(tmp_path / "trian.csv")
    assert error.path == tmp_path / "trian.csv"
    assert "no such file. Did you mean 'train.csv'?" in str(error)


@pytest.mark.parametrize(
    ("content", "fields"), [("text,label\na,1\nb\n", 1), ("text,label\na,1\nb,2,3\n", 3)]
)
def test_a_row_with_too_few_or_too_many_fields_is_named(
    tmp_path: Path, content: str, fields: int
) -> None:
    error = refused(write(tmp_path, "a.csv", content))
    assert error.row == 2
    assert f"row 2: {fields} fields, the header has 2" in str(error)


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.csv", 'text,label\na,1\n"b,2\nc,3\n'))
    assert error.row == 2
    assert 'a quote must stand in "double quotes", which must be closed' in str(error)


LONG = "word " * 600_000  # more than the parser takes at a time


def test_a_text_may_have_any_length(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f'text,label\na,1\n"{LONG}",2\nb,3\n')
    assert read(path) == {"text": ["a", LONG, "b"], "label": ["1", "2", "3"]}


def test_a_quote_that_is_never_closed_is_named_in_a_large_file(tmp_path: Path) -> None:
    rows = "".join(f"text {n},{n % 2}\n" for n in range(200_000))
    error = refused(write(tmp_path, "a.csv", f'text,label\na,1\n"b,2\n{rows}'))
    assert error.row == 2
    assert 'a quote must stand in "double quotes", which must be closed' in str(error)


@pytest.mark.parametrize(
    ("name", "header", "problem"),
    [
        ("a.csv", "text;label", "the header has no ',': 'text;label'; .* by ',', not by ';'"),
        ("a.csv", "text\tlabel", r"separated by ',', not by '\\t'"),
        ("a.tsv", "text,label", r"separated by '\\t', not by ','"),
    ],
)
def test_other_separators_are_named(tmp_path: Path, name: str, header: str, problem: str) -> None:
    error = refused(write(tmp_path, name, f"{header}\n{header}\n"))
    assert re.search(problem, str(error))


@pytest.mark.parametrize("row", ["a film;0,5", "a film, too;x", "a, b, c;1"])
def test_other_separators_are_named_even_if_rows_have_commas(tmp_path: Path, row: str) -> None:
    """Decimal commas and those of texts make the parser fail at a row, far from the cause."""
    error = refused(write(tmp_path, "a.csv", f"text;label\n{row}\n"))
    assert "the header has no ',': 'text;label'; fields must be separated by ',', not by ';'" in (
        str(error)
    )


@pytest.mark.parametrize(
    ("header", "row"),
    [('text,"a; b"', "x,y"), ('text,"a; b\nand c"', "x,y"), ('"text, if any"', "x")],
)
def test_a_column_name_may_contain_separators(tmp_path: Path, header: str, row: str) -> None:
    column = header.split(',"')[0].strip('"')
    path = write(tmp_path, "a.csv", f"{header}\n{row}\n")
    assert read_columns(path, [column]).values == {column: ["x"]}


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    assert str(refused(tmp_path / "a.csv")).endswith("is a folder; name a file in it")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    assert "an empty file; a header with the columns' names is needed" in str(
        refused(write(tmp_path, "a.csv", ""))
    )
    assert "no rows" in str(refused(write(tmp_path, "b.csv", "text,label\n")))
    assert "no rows" in str(refused(write(tmp_path, "c.jsonl", "\n")))


def test_a_missing_column_gets_near_matches(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.csv", "Text,y\na,1\n"))
    assert error.column == "text"
    assert "no such column; the file has Text, y. Did you mean 'Text'?" in str(error)
    pq.write_table(pa.table({"text": ["a"], "labels": [1]}), tmp_path / "b.parquet")
    assert "Did you mean 'labels'?" in str(refused(tmp_path / "b.parquet"))


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.csv", "text,text,label\na,b,1\n"))
    assert "has this column 2 times; rename one" in str(error)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_other_encodings_are_named(tmp_path: Path, name: str) -> None:
    error = refused(write(tmp_path, name, 'text,label\ncafé,"1"\n'.encode("latin-1")))
    assert "not UTF-8 (invalid continuation byte, byte 0xe9)" in str(error)
    assert "iconv -f WINDOWS-1252 -t UTF-8" in str(error)
    error = refused(write(tmp_path, name, "text,label\na,1\n".encode("utf-16")))
    assert "it looks like UTF-16" in str(error)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "b", "label":', "line 3 is not JSON (Expecting value at character 23)"),
        ("text", "line 3 is not JSON"),
        ('{"text": "b", "label": ' + "1" * 5000 + "}", "line 3 is not JSON (nested too deeply, or"),
        ("[" * 200_000, "line 3 is not JSON (nested too deeply, or"),
        ('["b", 2]', "line 3 holds a list"),
        ('{"txt": "b", "label": 2}', "column 'text': missing; the row has txt, label. Did you"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, "a.jsonl", f'{{"text": "a", "label": 1}}\n\n{line}\n')
    error = refused(path)
    assert error.row == 2
    assert problem in str(error)


def test_a_json_array_is_not_jsonl(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.jsonl", '[{"text": "a", "label": 1}]\n'))
    assert "JSON Lines, not an array" in str(error)


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    assert "not a sound parquet file" in str(refused(write(tmp_path, "a.parquet", "text")))
