"""`deltabert predict` where an output is also an input: no row is lost, and none is doubled."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from app.pipeline import __main__ as command_line

Predict = Callable[..., int]


@pytest.fixture
def predict(tiny_backbone_dir: Path, tiny_deltas: Path) -> Predict:
    """The command with the tiny backbone."""
    given = ["--task", "toy2", "--backbone", str(tiny_backbone_dir), "--deltas", str(tiny_deltas)]
    given += ["--threads", "1", "--device", "cpu", "--precision", "fp32"]
    return lambda *arguments: command_line.main([*map(str, arguments), *given])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of two files."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.csv").write_text("id,text\n1,good\n2,bad\n")
    (folder / "b.csv").write_text("id,text\n3,not good\n")
    return folder


def ids(path: Path) -> list[str]:
    return [row["id"] for row in csv.DictReader(path.read_text().splitlines())]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_named_input_that_is_the_output_is_answered_before_it_is_replaced(
    predict: Predict, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = (rows / "a.csv", rows / "b.csv", "--output", rows / "b.csv")
    before = (rows / "b.csv").read_text()
    assert predict(*both) == 2
    assert "b.csv exists; replace it with --overwrite" in capsys.readouterr().err
    assert (rows / "b.csv").read_text() == before
    assert predict(*both, "--overwrite") == 0
    assert ids(rows / "b.csv") == ["1", "2", "3"]
    assert predict(rows / "a.csv", "--output", rows / "a.csv", "--overwrite") == 0
    assert ids(rows / "a.csv") == ["1", "2"]
    assert names(rows) == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    "way", ["rows/out.csv", "rows/../rows/out.csv", "link/out.csv", "link.csv"]
)
def test_a_folder_does_not_stand_for_the_output_by_any_of_its_names(
    predict: Predict, rows: Path, tmp_path: Path, way: str
) -> None:
    (tmp_path / "link").symlink_to(rows)
    (tmp_path / "link.csv").symlink_to(rows / "out.csv")
    (rows / "out.csv").write_text("id,text\n9,earlier answers\n")
    assert predict(rows, "--output", tmp_path / way, "--overwrite") == 0
    assert ids(tmp_path / way) == ["1", "2", "3"]


def test_a_file_that_is_named_beside_its_folder_is_an_input_though_it_is_the_output(
    predict: Predict, rows: Path, tmp_path: Path
) -> None:
    (rows / "out.csv").write_text("id,text\n9,good\n")
    given = (rows, rows / "out.csv", "--output", rows / "out.csv", "--overwrite")
    assert predict(*given) == 0
    assert ids(rows / "out.csv") == ["1", "2", "3", "9"]


def test_a_folder_that_holds_the_output_alone_is_refused(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    output.write_text("id,text\n1,good\n")
    assert predict(tmp_path, "--output", output, "--overwrite") == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no files of rows besides the output {output}; name the file itself "
        "to answer it, or choose another folder\n"
    )
    assert ids(output) == ["1"]


def test_a_file_that_the_answers_of_one_before_it_would_replace_is_refused(
    predict: Predict, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = rows / "a.predictions.csv"
    second.write_text("id,text\n7,good\n")
    assert predict(rows / "a.csv", second, "--overwrite") == 2
    assert capsys.readouterr().err == (
        f"error: {second} is also the output of a.csv, which would replace it before it is read; "
        "name another file with --output\n"
    )
    assert ids(second) == ["7"]
    assert predict(second, rows / "a.csv", "--overwrite") == 0  # here it is read before
    assert ids(rows / "a.predictions.predictions.csv") == ["7"]
    assert ids(second) == ["1", "2"]


def test_two_files_with_the_same_output_are_refused(
    predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commas, tabs = tmp_path / "a.csv", tmp_path / "a.tsv"
    commas.write_text("id,text\n1,good\n")
    tabs.write_text("id\ttext\n2\tbad\n")
    assert predict(commas, tabs, "--overwrite") == 2
    assert capsys.readouterr().err == (
        f"error: the answers of a.csv and of a.tsv would go to the same file "
        f"{tmp_path / 'a.predictions.csv'}; name one file for both with --output, or answer them "
        "one at a time\n"
    )
    assert not (tmp_path / "a.predictions.csv").exists()
    assert predict(commas, tabs, "--output", tmp_path / "both.csv") == 0
    assert ids(tmp_path / "both.csv") == ["1", "2"]
