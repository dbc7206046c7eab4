"""Files of rows: every format gives the same rows, from any position on."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from app.pipeline.bulk.files import FileError, TextSource, input_file, input_files

ROWS = [{"id": str(n), "text": f"row {n}\nof {n}"} for n in range(3000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in each format."""
    folder = tmp_path_factory.mktemp("rows")
    for name, mark in (("rows.csv", ","), ("rows.tsv", "\t")):
        lines = [f'{row["id"]}{mark}"{row["text"]}"\n' for row in ROWS]
        (folder / name).write_text(f"id{mark}text\n{''.join(lines)}")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=700)
    return folder


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("done", [0, 1, 700, 2100, 2999, 3000])
def test_every_format_gives_its_rows_from_any_position_on(
    folder: Path, name: str, done: int
) -> None:
    source = input_file(str(folder / name)).open()
    assert source.columns() == ("id", "text")
    rows = list(source.rows())
    source.close()
    assert [row.value for row in rows] == ROWS
    again = input_file(str(folder / name)).open()
    again.columns()
    rest = list(again.rows(rows[done - 1].end if done else 0))
    again.close()
    assert rest == rows[done:]


def test_a_stream_is_read_once_and_names_its_columns_first() -> None:
    source = TextSource(io.BytesIO(b'[]\n{"text": "a"}\n"b"\n'), "jsonl")
    assert source.columns() == ()
    assert [row.value for row in source.rows()] == [None, {"text": "a"}, "b"]
    empty = TextSource(io.BytesIO(b""), "jsonl")
    assert empty.columns() == ()
    assert list(empty.rows()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows.cvs", "no such file.* Did you mean 'rows.csv'"),
        ("", "no such file"),
        ("odd.txt", r"ends in \.txt; known are \.csv"),
        ("rows.csv.gz", "Unpack it, or pipe its rows"),
        ("rows.json", "give its format: --format jsonl"),
        ("pipe.csv", "no regular file; give it as standard input"),
        ("-", "give its format: --format csv"),
    ],
)
def test_a_file_that_can_t_be_read_is_refused(folder: Path, name: str, says: str) -> None:
    for odd in ("odd.txt", "rows.csv.gz", "rows.json"):
        (folder / odd).touch()
    with suppress(FileExistsError):
        os.mkfifo(folder / "pipe.csv")
    with pytest.raises(FileError, match=says):
        input_file(name if name == "-" else str(folder / name))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text("id,text\n")
    with pytest.raises(FileError, match="no parquet file"):
        input_file(str(path)).open()


def test_a_folder_stands_for_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.JSONL", ".c.csv", "b.predictions.csv", "notes.txt", "b.csv.part"):
        (tmp_path / name).touch()
    (tmp_path / "d.csv").mkdir()
    found = input_files(str(tmp_path))
    assert [(file.name, file.suffixed) for file in found] == [
        ("a.JSONL", "jsonl"),
        ("b.csv", "csv"),
    ]
    assert [file.suffixed for file in input_files(str(tmp_path), "tsv")] == ["tsv", "tsv"]
    (named,) = input_files(str(tmp_path / "b.predictions.csv"))
    assert named.name == "b.predictions.csv"
    with pytest.raises(FileError, match=r"d\.csv: a folder without files of rows; known are \.csv"):
        input_files(str(tmp_path / "d.csv"))


def test_reading_goes_on_with_the_separator_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id;text\n1;a, b\n2;c, d\n")
    source = input_file(str(path)).open()
    source.columns()
    first, second = source.rows()
    source.close()
    again = input_file(str(path)).open()
    again.columns()
    assert list(again.rows(first.end)) == [second]
    again.close()
