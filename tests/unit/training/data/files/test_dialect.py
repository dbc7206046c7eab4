"""The separator of a file is found from its header and its first rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.files.dialect import Dialect, find_dialect, is_blank_row
from training.errors import DataError

WANTED = ("text", "label")


def find(
    tmp_path: Path, content: str, name: str = "a.csv", delimiter: str | None = None
) -> Dialect:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    return find_dialect(tmp_path / name, WANTED, delimiter)


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("text;label\na, b;1\n", ";"),
        ("text\tlabel;more,x\n", "\t"),
        ('"text";"label, or none";label\n', ";"),
        ("text , label\n", ","),
        ('text,"a;b;c;d",label\n', ","),
        ("txt;lbl\na, b;1\nc;2\n", ";"),
        ("txt,lbl\na; b,1\nc,2\n", ","),
        ("text\n", ","),
        ("", ","),
        ('"text;label\na;1\n', ";"),
    ],
)
def test_the_header_tells_the_separator(tmp_path: Path, content: str, delimiter: str) -> None:
    assert find(tmp_path, content).delimiter == delimiter


def test_the_usual_separator_is_taken_if_none_fits_better(tmp_path: Path) -> None:
    assert find(tmp_path, "text\n", "a.tsv").delimiter == "\t"
    assert find(tmp_path, "a,b;c\n", "a.csv").delimiter == ","


def test_a_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A quote that is never closed leaves what comes before it."""
    rows = "a;1\n" * 300 + 'b;"2\n' + "c;3\n" * 300
    assert find(tmp_path, "text;label\n" + rows).delimiter == ";"
    (tmp_path / "b.csv").write_bytes(b"text,label\n\xff,1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        find_dialect(tmp_path / "b.csv", WANTED)


def test_a_header_may_have_a_long_first_field(tmp_path: Path) -> None:
    assert find(tmp_path, f'"{"x" * 200_000}";text;label\n').delimiter == ";"


def test_the_line_of_excel_names_the_separator(tmp_path: Path) -> None:
    found = find(tmp_path, "sep=;\ntext,more;label\n")
    assert (found.delimiter, found.has_sep_line) == (";", True)
    found = find(tmp_path, "sep=;\ntext,label\n", delimiter=",")
    assert (found.delimiter, found.has_sep_line) == (",", True)
    assert not find(tmp_path, "sep=;,text,label\n").has_sep_line


def test_a_row_without_characters_is_blank() -> None:
    assert all(map(is_blank_row, ([], [""], ["", ""], [" ", "\t"])))
    assert not is_blank_row(["", "0"])
