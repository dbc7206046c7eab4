"""Rows from bytes that arrive in parts: any cut gives the same rows, a bad row costs itself."""

from __future__ import annotations

import csv
import gzip
import io
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pipeline.bulk import rows as bulk_rows
from app.pipeline.bulk.rows import (
    MAX_ROW_BYTES,
    CsvRows,
    HeaderError,
    JsonLines,
    RawRow,
    split_names,
)

MIXED = (
    b'\xef\xbb\xbfid,text\r\n1,"a\r\nb ""q"""\r\n\r\n2,x\r\n3,"open\r\n4,y\r\n5,a,b\n6,\xff\n'
    b'7,z"w"\n8,"k" j\n9,last'
)


def read(parser: CsvRows | JsonLines, content: bytes, size: int = 2**16) -> list[RawRow]:
    rows = []
    for start in range(0, len(content), size):
        rows += parser.feed(content[start : start + size])
    return rows + parser.finish()


def shown(rows: list[RawRow]) -> list[tuple[object, str, int]]:
    return [(row.value, str(row.problem), row.end) for row in rows]


def test_csv_rows_and_their_problems() -> None:
    rows = read(CsvRows(), MIXED)
    assert [row.value["id"] if isinstance(row.value, dict) else None for row in rows] == [
        *("1", "2", None, "4"),
        *(None, None, "7", None, "9"),
    ]
    assert rows[0].value == {"id": "1", "text": 'a\r\nb "q"'}
    problems = [str(row.problem) for row in rows if row.problem]
    assert problems == [
        "no CSV: ',' expected after '\"'",
        "has 3 fields, but the header has 2",
        "not UTF-8: byte 0xff at position 2 of its line; encode it as UTF-8",
        "no CSV: ',' expected after '\"'",
    ]
    assert rows[-1].end == len(MIXED)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_any_cut_gives_the_same_csv_rows(size: int) -> None:
    assert shown(read(CsvRows(), MIXED, size)) == shown(read(CsvRows(), MIXED))


@given(st.lists(st.tuples(st.text(), st.text(min_size=1)), min_size=1), st.integers(1, 50))
def test_csv_that_python_writes_is_read_back(cells: list[tuple[str, str]], size: int) -> None:
    cells = [
        tuple(text.encode(errors="ignore").decode().replace("\r", "") or "x" for text in row)  # type: ignore[misc]
        for row in cells
    ]
    file = io.StringIO()
    csv.writer(file).writerows([("a", "b"), *cells])
    rows = read(CsvRows(), file.getvalue().encode(), size)
    assert [row.value for row in rows] == [{"a": a, "b": b} for a, b in cells]


@pytest.mark.parametrize("content", [MIXED, b'text\n"a\nb"\n\nc\n'])
def test_reading_goes_on_behind_any_row(content: bytes) -> None:
    parser = CsvRows()
    rows = read(parser, content)
    for number, row in enumerate(rows, 1):
        rest = read(CsvRows(header=parser.header, position=row.end), content[row.end :], 5)
        assert shown(rest) == shown(rows[number:])


def test_a_quote_that_is_never_closed_costs_one_line() -> None:
    rows = read(CsvRows(), b'text\n"open\n' + b"good\n" * 50_000)
    assert "a quote is never closed: 'open" in str(rows[0].problem)
    assert len(rows) == 50_001
    assert all(row.value == {"text": "good"} for row in rows[1:])


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that readers of CSV have taken up, each as often as it was read."""
    lines, used = list[str](), CsvRows._used

    def noted(rows: CsvRows) -> Iterator[str]:
        for line in used(rows):
            lines.append(line)
            yield line

    monkeypatch.setattr(CsvRows, "_used", noted)
    return lines


@pytest.mark.parametrize("end", [b"", b'y"z\n'])
def test_lines_that_all_open_a_quote_are_not_read_again_and_again(
    readings: list[str], end: bytes
) -> None:
    """Each of these lines opens a quote, whether one is open before it or not."""
    num_lines = 2000
    rows = read(CsvRows(), b"text\n" + b'x","\n' * num_lines + end + b"good\n")
    assert len(readings) < 4 * num_lines
    assert [row.value for row in rows if row.value][-1] == {"text": "good"}
    assert sum(row.problem is not None for row in rows) >= num_lines
    assert rows[-1].end == 5 + 5 * num_lines + len(end) + 5


@pytest.mark.parametrize("line", [b'""\n', b'","\n', b'b","\n', b'a,"",b""\n', b"x\n"])
@pytest.mark.parametrize("most_bytes", [10_000, 2**15 + 10_000])
def test_an_open_quote_whose_lines_come_one_by_one_is_read_once(
    line: bytes, most_bytes: int, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of a stream may send few bytes at a time, and each reading takes all of the row."""
    monkeypatch.setattr(bulk_rows, "MAX_ROW_BYTES", 2**15)
    num_lines = most_bytes // len(line)
    content = b'text\n"a\n' + line * num_lines
    wanted = shown(read(CsvRows(), content))
    readings.clear()
    parser = CsvRows()
    rows = parser.feed(b'text\n"a\n')
    for _ in range(num_lines):
        rows += parser.feed(line)
    rows += parser.finish()
    assert shown(rows) == wanted
    assert len(readings) < 6 * num_lines


LINES = st.lists(st.sampled_from([b"a", b'"', b'""', b",", b'","', b'",', b',"', b"\r", b"\n"]))


@given(LINES)
def test_lines_that_are_cut_anywhere_give_the_same_rows(pieces: list[bytes]) -> None:
    content = b"text,more\n" + b"".join(pieces)
    parser = CsvRows()
    rows = [row for piece in [b"text,more\n", *pieces] for row in parser.feed(piece)]
    rows += parser.finish()
    assert shown(rows) == shown(read(CsvRows(), content))


def test_a_row_that_is_too_long_costs_itself() -> None:
    long = b"x" * (MAX_ROW_BYTES + 1)
    for parser, lines in ((CsvRows(), (b"text", long, b"good")), (JsonLines(), (long, b'"good"'))):
        rows = read(parser, b"\n".join(lines))
        assert [row.problem.code if row.problem else "" for row in rows] == ["too_large", ""]
    quoted = b'"' + b"a\n" * (MAX_ROW_BYTES // 2) + b'"'
    rows = read(CsvRows(), b"text\n" + quoted + b"\ngood\n")
    assert rows[0].problem
    assert rows[-1].value == {"text": "good"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no header"),
        (b"\n\n", "has no header"),
        (b"a,b,a\n", "has the column 'a' more than once"),
        (b"\xff\n", "a header that can't be read: not UTF-8"),
        (b'"a\n1\n', "a header that can't be read: a quote is never closed"),
        (b"text\ra\r", "a carriage return alone; end lines as Unix or Windows does"),
        (gzip.compress(b"text\na\n", mtime=0), "is a gzip archive; unpack it"),
        ("text\na\n".encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(HeaderError, match=says):
        read(CsvRows(), content)


def test_a_header_of_very_many_columns_is_read_at_once() -> None:
    columns = [f"{number:x}" for number in range(100_000)]
    parser, began = CsvRows(), time.process_time()
    read(parser, ",".join(columns).encode() + b"\n")
    assert time.process_time() - began < 5  # it took minutes when each name was compared with all
    assert parser.header == tuple(columns)


def test_a_long_name_is_cut_in_a_message() -> None:
    name = b"x" * 100_000
    with pytest.raises(HeaderError) as error:
        read(CsvRows(), name + b"," + name + b"\n")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("content", "delimiter", "value"),
    [
        (b"text;id\na, b;1\n", ";", {"text": "a, b", "id": "1"}),
        (b'\n"text, or title, if any";id\na;1\n', ";", {"text, or title, if any": "a", "id": "1"}),
        (b"text\tid\na;b|c\t1\n", "\t", {"text": "a;b|c", "id": "1"}),
        (b"text|id\na|1\n", "|", {"text": "a", "id": "1"}),
        (b"text\na;b\n", ",", {"text": "a;b"}),
        (b"text,id;x\na,1\n", ",", {"text": "a", "id;x": "1"}),
        (b"\xef\xbb\xbfsep=;\r\ntext;id\r\na, b;1\r\n", ";", {"text": "a, b", "id": "1"}),
        (b'"sep=|"\ntext|id\na;b|1\n', "|", {"text": "a;b", "id": "1"}),
        (b"\nSEP=\t\ntext\tid\na,b\t1\n", "\t", {"text": "a,b", "id": "1"}),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_the_header_tells_the_separator(
    content: bytes, delimiter: str, value: dict[str, str], size: int
) -> None:
    parser = CsvRows()
    assert [row.value for row in read(parser, content, size)] == [value]
    assert parser.delimiter == delimiter


def test_columns_without_a_name_may_be_several() -> None:
    """Spreadsheets write them behind the last column."""
    (row,) = read(CsvRows(), b"text,id,,\na,1,,\n")
    assert isinstance(row.value, dict)
    assert (row.value["text"], row.value["id"]) == ("a", "1")


@pytest.mark.parametrize(
    "content", ['{"text": "a"}\n'.encode("utf-16"), gzip.compress(b"{}", mtime=0)]
)
def test_lines_of_json_are_not_read_from_other_formats(content: bytes) -> None:
    with pytest.raises(HeaderError, match=r"is UTF-16|is a gzip archive"):
        read(JsonLines(), content)


def test_names_are_split_at_commas_outside_quotes() -> None:
    assert split_names('a, "b, c",d ') == ("a", "b, c", "d")
    assert split_names("") == ()
    with pytest.raises(ValueError, match="not closed"):
        split_names('"a')


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_lines_of_json(size: int) -> None:
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\n"x"\n[1]\n{bad\n\xff\n{"a": 1}'
    rows = read(JsonLines(), content, size)
    values = [row.value for row in rows]
    assert values == [{"text": "a"}, "x", None, None, None, {"a": 1}]
    codes = [row.problem.code if row.problem else "" for row in rows]
    assert codes == ["", "", "invalid_input", "malformed_json", "invalid_input", ""]
    assert rows[-1].end == len(content)
    rest = read(JsonLines(rows[1].end), content[rows[1].end :], size)
    assert shown(rest) == shown(rows[2:])


def test_json_that_no_parser_can_hold_is_a_problem_of_its_row() -> None:
    rows = read(JsonLines(), b"[" * 100_000 + b"\n" + b"1" * 10_000 + b"\n")
    assert [row.problem.code for row in rows if row.problem] == ["malformed_json"] * 2


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_numbers_that_json_has_not_are_problems_of_their_rows(number: bytes) -> None:
    """Python reads and writes them; other programs could not read the answer."""
    rows = read(JsonLines(), b'{"id": [%s], "text": "a"}\n{"id": 1.5, "text": "b"}\n' % number)
    assert str(rows[0].problem) == f"no JSON: {number.decode()} is no number there"
    assert rows[1].value == {"id": 1.5, "text": "b"}
