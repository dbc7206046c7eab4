"""The part and its journal: a run goes on behind what they hold, and never replaces by itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from app.pipeline.bulk.files import FileError
from app.pipeline.bulk.part import FileProgress, PartFile

FACTS = {"inputs": [["in.csv", 3]], "top_k": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The output."""
    return tmp_path / "made" / "out.csv"


def test_the_output_appears_when_it_is_complete(path: Path) -> None:
    part = PartFile(path, FACTS, overwrite=False)
    part.write(b"a\n", FileProgress())
    part.write(b"b\n", FileProgress(num_rows=1))
    assert not path.exists()
    part.finish()
    assert path.read_bytes() == b"a\nb\n"
    assert [file.name for file in path.parent.iterdir()] == ["out.csv"]


def test_a_later_run_cuts_what_the_journal_does_not_hold(path: Path) -> None:
    part = PartFile(path, FACTS, overwrite=False)
    part.write(b"a\n", FileProgress(position=7, number=1, num_rows=1))
    part.close()
    with path.with_name("out.csv.part").open("ab") as file:
        file.write(b"half a r")  # killed before the journal was written
    again = PartFile(path, FACTS, overwrite=False)
    assert again.progress == FileProgress(position=7, number=1, num_rows=1, num_bytes=2)
    again.write(b"b\n", FileProgress(num_rows=2))
    again.finish()
    assert path.read_bytes() == b"a\nb\n"


def test_a_part_without_a_journal_is_begun_anew(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("out.csv.part").write_bytes(b"half")
    part = PartFile(path, FACTS, overwrite=False)
    part.write(b"a\n", FileProgress())
    part.finish()
    assert path.read_bytes() == b"a\n"


def test_nothing_is_replaced_by_itself(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(FileError, match="exists; replace it with --overwrite"):
        PartFile(path, FACTS, overwrite=False)
    part = PartFile(path, FACTS, overwrite=True)
    part.write(b"new", FileProgress())
    assert path.read_bytes() == b"old"
    part.finish()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("spoil", ["facts", "journal", "bytes"])
def test_the_part_of_another_run_is_refused(path: Path, spoil: str) -> None:
    part = PartFile(path, FACTS, overwrite=False)
    part.write(b"a\n", FileProgress())
    part.close()
    journal, facts = path.with_name("out.csv.part.json"), dict(FACTS)
    if spoil == "facts":
        facts["top_k"] = 3  # type: ignore[assignment]
    elif spoil == "journal":
        journal.write_text("{")
    else:
        path.with_name("out.csv.part").write_bytes(b"")
    with pytest.raises(FileError, match=r"was begun with other facts|begin anew with --overwrite"):
        PartFile(path, facts, overwrite=False)
    again = PartFile(path, facts, overwrite=True)
    assert again.progress == FileProgress()
    again.close()


def test_two_processes_do_not_write_one_output(path: Path) -> None:
    part = PartFile(path, FACTS, overwrite=False)
    with pytest.raises(FileError, match="another process writes"):
        PartFile(path, FACTS, overwrite=True)
    part.close()
    PartFile(path, FACTS, overwrite=False).close()


def test_parquet_is_made_from_the_lines(path: Path) -> None:
    import pyarrow.parquet

    path = path.with_suffix(".parquet")
    part = PartFile(path, FACTS, overwrite=False)
    rows = [
        {"row": 0, "id": 1, "mixed": "a", "labels": ["a"], "score": 1, "none": None},
        {"row": 1, "id": None, "error": {"code": "too_large", "message": "long"}},
        {"row": 2, "id": 2, "mixed": {"b": 1}, "labels": [], "score": 0.5, "none": None},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    part.write(lines.encode(), FileProgress(num_rows=3))
    part.finish()
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == ["row", "id", "mixed", "labels", "score", "none", "error"]
    assert table.to_pydict() == {
        "row": [0, 1, 2],
        "id": [1, None, 2],
        "mixed": ['"a"', None, '{"b": 1}'],
        "labels": [["a"], None, []],
        "score": [1.0, None, 0.5],
        "none": [None, None, None],
        "error": [None, "too_large: long", None],
    }
    assert [file.name for file in path.parent.iterdir()] == ["out.parquet"]


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    part = PartFile(path, FACTS, overwrite=False)
    part.write(b"a\n", FileProgress(number=1, num_rows=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match=r"out\.csv\.part can't be written: No space left"):
            part.write(b"b\n", FileProgress(number=2, num_rows=2))
        part.close()
    again = PartFile(path, FACTS, overwrite=False)
    assert again.progress.num_rows == 1
    again.write(b"b\n", FileProgress(number=2, num_rows=2))
    again.finish()
    assert path.read_bytes() == b"a\nb\n"
