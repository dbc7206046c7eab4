"""Delimited text: separators and quotes of every program are read, and broken rows are named."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from training.data.files.columns import Columns
from training.data.files.delimited import DelimitedOptions, read_delimited
from training.errors import DataError

WANTED = ("text", "label")


def write(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode())
    return path


def load(path: Path, delimiter: str | None = None, *, quoting: bool | None = None) -> Columns:
    return read_delimited(path, WANTED, DelimitedOptions(delimiter, quoting))


def read(path: Path) -> dict[str, list[str]]:
    return load(path).values


def refused(path: Path, *, quoting: bool | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        load(path, quoting=quoting)
    return caught.value


CSV = 'id,text,label\n1,"a, b",01\n2,"two\nlines",x\n\n3,"say ""hi""",NA\n'
CSV_VALUES = {"text": ["a, b", "two\nlines", 'say "hi"'], "label": ["01", "x", "NA"]}


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


@pytest.mark.parametrize(
    ("content", "fields"), [("text,label\na,1\nb\n", 1), ("text,label\na,1\nb,2,3\n", 3)]
)
def test_a_row_with_too_few_or_too_many_fields_is_named(
    tmp_path: Path, content: str, fields: int
) -> None:
    error = refused(write(tmp_path, "a.csv", content))
    assert error.row == 2
    noun = "field" if fields == 1 else "fields"
    assert f"row 2: {fields} {noun}, the header has 2" in str(error)
    assert ("fill the row up or drop it" in str(error)) == (fields == 1)


@pytest.mark.parametrize("row", ['"b,2', 'b,"2', '"b,2\n"c","3"', 'b,"2\nc,3\nd,"4"'])
def test_a_quote_that_is_never_closed_is_named(tmp_path: Path, row: str) -> None:
    """In the last column it would swallow the remaining rows without an error."""
    error = refused(write(tmp_path, "a.csv", f"text,label\na,1\n{row}\ne,5\n"))
    assert error.row == 2
    assert re.search("is never closed|goes on after its closing quote", str(error))
    assert "--quoting off" in str(error)


LONG = "word " * 600_000  # more than the parser takes at a time


def test_a_text_may_have_any_length(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", f'text,label\na,1\n"{LONG}",2\nb,3\n')
    assert read(path) == {"text": ["a", LONG, "b"], "label": ["1", "2", "3"]}


def test_a_quote_that_is_never_closed_is_named_in_a_large_file(tmp_path: Path) -> None:
    rows = "".join(f"text {n},{n % 2}\n" for n in range(200_000))
    error = refused(write(tmp_path, "a.csv", f'text,label\na,1\n"b,2\n{rows}'))
    assert error.row == 2
    assert "a quote opens a field in this row and is never closed" in str(error)


@pytest.mark.parametrize(
    ("header", "row"),
    [('text,"a; b"', "x,y"), ('text,"a; b\nand c"', "x,y"), ('"text, if any"', "x")],
)
def test_a_column_name_may_contain_separators(tmp_path: Path, header: str, row: str) -> None:
    column = header.split(',"')[0].strip('"')
    path = write(tmp_path, "a.csv", f"{header}\n{row}\n")
    assert read_delimited(path, [column], DelimitedOptions()).values == {column: ["x"]}


# Two stray quotes, 20 lines apart, as GLUE's TSV files have them.
LINES = [f"text {n}\t{n % 2}" for n in range(40)]
STRAY = [*LINES[:9], '"' + LINES[9], *LINES[10:29], LINES[29].replace("\t", '"\t'), *LINES[30:]]
UNCLOSED = [*LINES[:9], '"' + LINES[9], *LINES[10:]]
INNER = [*LINES[:9], '"quoted" ' + LINES[9], *LINES[10:]]


@pytest.mark.parametrize("lines", [STRAY, UNCLOSED, INNER])
@pytest.mark.parametrize("delimiter", ["\t", "|"])
def test_stray_quotes_of_a_file_without_quoting_swallow_no_row(
    tmp_path: Path, lines: list[str], delimiter: str
) -> None:
    content = "\n".join(["text\tlabel", *lines]).replace("\t", delimiter)
    columns = load(write(tmp_path, "a.tsv", content))
    assert columns.values["text"] == [line.split("\t")[0] for line in lines]
    assert columns.values["label"] == [line.split("\t")[1] for line in lines]
    assert "quotes read as characters" in columns.reading_notes[0]
    (warning,) = columns.warnings
    assert warning.startswith("a.tsv, row 10: if quotes enclosed fields, this row would ")
    assert "--quoting on" in warning


def test_quotes_of_a_tsv_file_that_pandas_wrote_enclose_fields(tmp_path: Path) -> None:
    texts = ["two\nlines", "a\ttab", 'say "hi"', '"', "plain", "a\n\nb\tc"]
    path = tmp_path / "a.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([WANTED, *((text, n % 2) for n, text in enumerate(texts))])
    columns = load(path)
    assert columns.values["text"] == texts
    assert columns.warnings == ()


def test_a_csv_row_that_swallowed_others_is_refused(tmp_path: Path) -> None:
    """Its quotes are closed in the wrong place; the labels of its lines are those of others."""
    content = "\n".join(["text,label", *(line.replace("\t", ",") for line in STRAY)])
    path = write(tmp_path, "a.csv", content)
    error = refused(path)
    assert error.row == 10
    assert "spans 21 lines that look like rows of their own" in str(error)
    assert load(path, quoting=True).num_rows == 20
    assert load(path, quoting=False).num_rows == 40
    # One row needs its quotes, so that the file can't be read without quoting.
    error = refused(write(tmp_path, "b.csv", content + '\n"a, b",1\n'))
    assert error.row == 10


@pytest.mark.parametrize(
    "text",
    ["Dear Ann,\nI am fine", "a, b\nc, d\ne, f\ng, h", "1\n2\n3", "x\n\n\ny", "a,b\n" * 9],
)
def test_a_text_of_several_lines_is_one_text(tmp_path: Path, text: str) -> None:
    columns = load(write(tmp_path, "a.csv", f'text,label\n"{text}",pos\nb,neg\nc,pos\n'))
    assert columns.values == {"text": [text, "b", "c"], "label": ["pos", "neg", "pos"]}
    assert columns.warnings == ()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize(
    ("delimiter", "shown"),
    [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")],
)
def test_the_separator_is_found_whatever_the_name_says(
    tmp_path: Path, name: str, delimiter: str, shown: str
) -> None:
    rows = ["text;label", "a film, too;0,5", "b | c, d;1", 'e;"2"']
    content = "\n".join(row.replace(";", delimiter) for row in rows)
    if delimiter in ",|":
        content = (
            content.replace("a film, too", "a film").replace("0,5", "1").replace("b | c, d", "b")
        )
    columns = load(write(tmp_path, name, content))
    assert columns.num_rows == 3
    assert columns.values["label"][2] == "2"
    assert columns.reading_notes == (f"{name}: 3 rows, fields separated by {shown}",)


def test_the_user_names_a_separator(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text^label\na,b^1\n")
    assert load(path, "^").values == {"text": ["a,b"], "label": ["1"]}
    assert load(path, "^").reading_notes == ("a.csv: 1 row, fields separated by '^'",)
    error = refused(path)
    assert "no such column; the file has text^label" in str(error)
    assert "--delimiter" in str(error)


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=;;"])
def test_the_separator_line_of_excel_is_no_header(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, "a.csv", f"\ufeff{line}\r\ntext;label\r\na,b;1\r\n")
    assert read(path) == {"text": ["a,b"], "label": ["1"]}
    assert load(write(tmp_path, "b.csv", "sep=\t\ntext\tlabel\na,b\t1\n")).num_rows == 1
    assert load(write(tmp_path, "c.csv", "sep=,\ntext;label\na;1\n"), ";").num_rows == 1


def test_blanks_may_stand_before_quotes(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '"text", "label"\n"a, b", "x"\n"c", "y"\n')
    assert read(path) == {"text": ["a, b", "c"], "label": ["x", "y"]}


def test_rows_of_empty_fields_are_left_out(tmp_path: Path) -> None:
    columns = load(write(tmp_path, "a.csv", "text,label,\na,1,\n,,\nb,2,\n,,\n  \n\n"))
    assert columns.values == {"text": ["a", "b"], "label": ["1", "2"]}
    assert columns.reading_notes[0].endswith(", 2 rows of empty fields left out")


def test_empty_fields_beyond_the_header_are_no_error(tmp_path: Path) -> None:
    assert load(write(tmp_path, "a.csv", "text,label\na,1,,\nb,2\n")).num_rows == 2


def test_columns_without_a_name_may_be_left_out_by_rows(tmp_path: Path) -> None:
    columns = load(write(tmp_path, "a.csv", "text,label,,\na,1\nb,2,,note\nc,3,,,\n"))
    assert columns.values == {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
    assert refused(write(tmp_path, "b.csv", "text,label,,id\na,1\n")).row == 1


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("My report;\n;\ntext;label\na;1\n", "stand further down: delete the 2 lines above"),
        ("# by a tool\ntext,label\na,1\n", "stand further down: delete the line above them"),
        ("a film,1\nanother,0\n", "Is the first line of the file a header"),
        ('"text,label"\n"a,1"\n', "whole lines stand in quotes"),
        ('text,label\n"a,1"\n', "row 1: 1 field, the header has 2, separated by commas; whole li"),
    ],
)
def test_a_header_that_is_not_found_gets_a_hint(tmp_path: Path, content: str, hint: str) -> None:
    assert hint in str(refused(write(tmp_path, "a.csv", content)))


def test_row_names_of_r_are_named(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.csv", '"text","label"\n"1","a","x"\n'))
    assert "the header lacks a name, as R leaves out" in str(error)


def test_a_nul_character_is_refused_wherever_it_is(tmp_path: Path) -> None:
    rows = "a,1\n" * 3000
    error = refused(write(tmp_path, "a.csv", f"text,label\n{rows}b\0c,1\n"))
    assert error.row == 3001
    assert "contains a NUL character" in str(error)
    assert load(write(tmp_path, "b.csv", f"text,label,id\n{rows}b,1,\0\n".replace("a,1", "a,1,2")))


@pytest.mark.parametrize("content", ['{"text": "a"}\n{"text": "b"}\n', ' [\n {"text": "a"}]\n'])
def test_json_under_another_name_is_named(tmp_path: Path, content: str) -> None:
    problem = "the content is JSON, whatever the file is called; rename it to end in .jsonl"
    assert problem in str(refused(write(tmp_path, "a.csv", content)))


def test_a_header_of_many_columns_is_read(tmp_path: Path) -> None:
    names = ",".join(f"column {n}" for n in range(100_000))
    values = ",".join(str(n) for n in range(100_000))
    columns = load(write(tmp_path, "a.csv", f"{names},text,label\n{values},a,1\n"))
    assert columns.values == {"text": ["a"], "label": ["1"]}
    error = refused(write(tmp_path, "b.csv", f"{names},txt,label\n{values},a,1\n"))
    assert "and 99982 more. Did you mean 'txt'?" in str(error)
    assert len(str(error)) < 1000


def test_a_header_between_the_rows_is_left_out_and_told(tmp_path: Path) -> None:
    """Files that were joined repeat it; it would be a text and a label of its own."""
    columns = load(write(tmp_path, "a.csv", "text,label\na,1\n\ufefftext,label\nb,2\ntext,label\n"))
    assert columns.values == {"text": ["a", "b"], "label": ["1", "2"]}
    assert columns.warnings == (
        "a.csv: the header occurs again 2 times between the rows (first after row 1), as if files "
        "were joined; these lines were left out",
    )
    assert load(write(tmp_path, "b.csv", "text,label\ntext,1\nb,label\n")).num_rows == 2


def test_the_dashes_of_a_markdown_table_are_no_row(tmp_path: Path) -> None:
    content = "| text | label |\n|:---|---:|\n| a | 1 |\n| --- | --- |\n"
    columns = load(write(tmp_path, "a.csv", content))
    assert columns.num_rows == 2
    assert columns.reading_notes[0].endswith("vertical bars, a line of dashes left out")
    assert load(write(tmp_path, "b.csv", "text|label\n-|-\n---|\n")).num_rows == 2


def test_backslashes_before_quotes_are_left_out_and_told(tmp_path: Path) -> None:
    content = 'text,label\na,1\n"say \\"hi\\", ok",2\n"c:\\new, \\\\",3\n'
    columns = load(write(tmp_path, "a.csv", content))
    assert columns.values["text"] == ["a", 'say "hi", ok', "c:\\new, \\"]
    (warning,) = columns.warnings
    assert warning.startswith("a.csv, row 2: quotes inside of fields have a backslash before them")
    assert columns.reading_notes == ("a.csv: 3 rows, fields separated by commas",)


def test_the_end_of_a_file_may_be_marked(tmp_path: Path) -> None:
    assert load(write(tmp_path, "a.csv", "text,label\na,1\n\x1a")).num_rows == 1
    rows = "text,label\n" + "a,1\n" * 3000
    error = refused(write(tmp_path, "b.csv", rows + "\0" * 9))
    assert (error.row, "contains a NUL character" in str(error)) == (3001, True)


def test_a_carriage_return_inside_of_a_text_makes_no_two_rows(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.csv", "label,text\n1,a\n2,b\rmore, too\n3,c\n"))
    assert error.row == 2
    assert "ends with a carriage return, while others end with a line feed" in str(error)
    quoted = load(write(tmp_path, "b.csv", 'label,text\n1,a\n2,"b\rmore, too"\n'))
    assert quoted.values["text"] == ["a", "b\rmore, too"]
    for end in ("\r", "\r\n", "\r\r\n"):
        assert load(write(tmp_path, "c.csv", f"label,text{end}1,a{end}2,b{end}")).num_rows == 2


def test_values_without_a_name_may_be_cut_off_others(tmp_path: Path) -> None:
    """Decimal commas without quotes lose their fractions, if the header ends with a comma."""
    columns = load(write(tmp_path, "a.csv", "text,label,\na,1,\nb,2,5\nc,3,0\n"))
    (warning,) = columns.warnings
    assert warning.startswith(
        "a.csv, row 2: '5' stands in a column without a name (1 more such rows follow); if a "
        "separator cut a field in two"
    )
    assert load(write(tmp_path, "b.csv", ",text,label,\n0,a,1, \n")).warnings == ()
