"""Values arrive unchanged from every format, and other files get clear errors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.files.reader import read_columns
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


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.xyz", ""))
    assert "ends in .xyz; known: .csv, .tsv, .tab, .txt, .jsonl, .ndjson, .json, .parquet" in (
        str(error)
    )
    assert "ends in nothing; known: " in str(refused(write(tmp_path, "rows", "")))
    for name, remedy in (("a.XLSX", "save the sheet as CSV UTF-8"), ("a.csv.gz", "unpack it")):
        assert remedy in str(refused(write(tmp_path, name, "")))


def test_a_missing_file_gets_near_matches(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", CSV)
    error = refused(tmp_path / "trian.csv")
    assert error.path == tmp_path / "trian.csv"
    assert "no such file. Did you mean 'train.csv'?" in str(error)
    (tmp_path / "train.csv").rename(tmp_path / "._train.csv")
    assert str(refused(tmp_path / "trian.csv")).endswith("no such file")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / "gone.csv")
    assert f"a link to {tmp_path / 'gone.csv'}, which does not exist" in str(
        refused(tmp_path / "a.csv")
    )


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    assert "no regular file; save the rows to a file first" in str(refused(tmp_path / "a.csv"))


def test_warnings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = read_columns(write(tmp_path, "a.tsv", 'text\tlabel\n"a\t1\nb"\t2\n'), WANTED)
    assert len(columns.warnings) == 1
    assert columns.warnings[0] in caplog.text


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    (tmp_path / "rows").mkdir()
    for name in ("a.csv", "rows"):
        assert str(refused(tmp_path / name)).endswith("is a folder; name a file in it")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    assert "an empty file; a header with the columns' names is needed" in str(
        refused(write(tmp_path, "a.csv", ""))
    )
    assert "no rows" in str(refused(write(tmp_path, "b.csv", "text,label\n")))
    assert "no rows" in str(refused(write(tmp_path, "c.jsonl", "\n")))


@pytest.mark.parametrize("spelled", ["text ", " text", "text\u00a0", "te\u200bxt", "\tte\u00adxt"])
def test_blanks_around_a_name_need_not_be_spelled(tmp_path: Path, spelled: str) -> None:
    names = [spelled, "label"]
    (tmp_path / "a.csv").write_text(f'"{spelled}",label\na,1\n', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({spelled: "a", "label": "1"}), encoding="utf-8")
    pq.write_table(pa.table([["a"], ["1"]], names), tmp_path / "a.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        path = tmp_path / f"a.{ending}"
        assert read(path) == {"text": ["a"], "label": ["1"]}
        assert read_columns(path, [spelled]).values == {spelled: ["a"]}
