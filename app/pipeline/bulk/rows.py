"""Cuts bytes that arrive in parts into rows: lines of JSON, or CSV with a header.

A row that can't be read takes its place as a `RawRow` with a problem, and the rows after it are
read as if it were not there. So a quote that is never closed costs one line: the line is reported,
and the next one is read as the begin of a row. No row is held that has more than `MAX_ROW_BYTES`.

Nothing here knows a task. Read `app.pipeline.bulk.columns` next, which takes the texts from a row.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, NoReturn

MAX_ROW_BYTES = 2**20  # about five of the longest texts that a server takes by default
_QUOTE = b'"'
_SEPARATORS = ",;\t|"  # the first one wins a tie
_SEP_LINE = re.compile(r'"?sep=([^\r\n"])"?\1*[\r\n]*', re.IGNORECASE)  # of Excel
_SHOWN_BYTES = 60  # of a text in a message
_UTF_16 = "is UTF-16, not UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`"
_FOREIGN = {
    b"\x1f\x8b": "is a gzip archive; unpack it",
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save it as CSV UTF-8",
    b"BZh": "is a bzip2 archive; unpack it",
    b"\xfd7zXZ": "is an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "is a zstd archive; unpack it",
    b"PAR1": "is a parquet file; rename it to end in .parquet, or give --format parquet",
    codecs.BOM_UTF16_LE: _UTF_16,
    codecs.BOM_UTF16_BE: _UTF_16,
}


class RowProblem(Exception):  # noqa: N818 - it is the row that is wrong
    """A problem of one row, which is reported in the row's place.

    Args:
        code: identifier for programs, one of those in `app.errors`.
        message: sentence for people.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)

    def __reduce__(self) -> tuple[type[RowProblem], tuple[str, str]]:
        return RowProblem, (self.code, str(self))  # for rows that go to another process


class HeaderError(Exception):
    """The rows have no usable header, or the header lacks a column; no row can be answered."""


class RawRow(NamedTuple):
    """A row as it was read.

    Attributes:
        value: its text, or its values by column; None if it has a problem.
        problem: the reason why it can't be read.
        end: number of bytes up to its end, from the begin of the file.
    """

    value: str | Mapping[str, Any] | None
    problem: RowProblem | None
    end: int


class _LineCutter:
    """Cuts parts into lines; a line that is too long becomes None."""

    def __init__(self, position: int) -> None:
        self.position = position  # bytes of all lines given so far
        self._rest = bytearray()
        self._num_dropped = 0  # bytes of a line that is too long

    def feed(self, part: bytes) -> Iterator[bytes | None]:
        """Yield the lines that end in this part, with their ends."""
        start = 0
        while end := part.find(b"\n", start) + 1:
            yield self._line(part[start:end])
            start = end
        self._rest += part[start:]
        if len(self._rest) > MAX_ROW_BYTES:
            self._num_dropped += len(self._rest)
            self._rest.clear()

    def finish(self) -> Iterator[bytes | None]:
        """Yield the last line, if it has no end."""
        if self._rest or self._num_dropped:
            yield self._line(b"")

    def _line(self, last: bytes) -> bytes | None:
        """Return the next line.

        Raises:
            HeaderError: it is the first one, and begins like a file of another format.
        """
        line = bytes(self._rest) + last
        num_bytes = len(line) + self._num_dropped
        at_start = self.position == 0
        self.position += num_bytes
        self._num_dropped = 0
        self._rest.clear()
        if at_start:
            _check_format(line)
        if num_bytes > MAX_ROW_BYTES:
            return None
        return line.removeprefix(codecs.BOM_UTF8) if at_start else line


def _check_format(line: bytes) -> None:
    for start, problem in _FOREIGN.items():
        if line.startswith(start):
            raise HeaderError(problem)


class JsonLines:
    """Reads a row from each line of JSON: a text, or an object; blank lines are no rows.

    Args:
        position: number of bytes before the first part.
    """

    header: tuple[str, ...] | None = None  # each object names its own columns

    def __init__(self, position: int = 0) -> None:
        self._lines = _LineCutter(position)

    def feed(self, part: bytes) -> list[RawRow]:
        """Return the rows that end in this part.

        Raises:
            HeaderError: the first line begins like a file of another format.
        """
        return list(self._read(self._lines.feed(part)))

    def finish(self) -> list[RawRow]:
        """Return the last row, if its line has no end.

        Raises:
            HeaderError: it is the first one, and begins like a file of another format.
        """
        return list(self._read(self._lines.finish()))

    def _read(self, lines: Iterator[bytes | None]) -> Iterator[RawRow]:
        for line in lines:
            if line is None or line.strip():
                yield _json_row(line, self._lines.position)


def _json_row(line: bytes | None, end: int) -> RawRow:
    problem = None if line is not None else _too_long("line")
    try:
        value = None
        if line is not None:
            value = json.loads(line, parse_constant=_no_number, parse_float=_finite)
    except RowProblem as error:
        problem = error
    except json.JSONDecodeError as error:
        problem = RowProblem("malformed_json", f"no JSON: {error.msg} at character {error.pos}")
    except UnicodeDecodeError as error:
        problem = _not_utf8(error)
    except (ValueError, RecursionError):
        text = "nested too deeply, or a number with too many digits"
        problem = RowProblem("malformed_json", text)
    else:
        if problem is None and not isinstance(value, str | dict):
            text = f"must be a text or an object, not {json.dumps(value)[:_SHOWN_BYTES]}"
            problem = RowProblem("invalid_input", text)
    return RawRow(None if problem else value, problem, end)


def _no_number(text: str) -> NoReturn:
    """Refuse NaN and infinities: a kept one would make the line of the answer no JSON."""
    raise RowProblem("malformed_json", f"no JSON: {text[:_SHOWN_BYTES]} is no number there")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


class _Failure(NamedTuple):
    """An error of the reader of CSV, and the number of lines that it had used by then."""

    end: int
    error: csv.Error


_NO_FAILURE = _Failure(0, csv.Error())
# A line within quotes at its begin and at its end: the rest of a quoted field, other fields behind
# a delimiter (D), and the begin of a quoted one. Nothing is tried twice (`++`).
_REST = rb'(?:[^"]++|"")*+'
_FIELDS = rb'(?:D|[^"D\r\n][^D\r\n]*+D|"' + _REST + rb'"D)*+'
_OPEN_LINE = _REST + rb'(?:"D' + _FIELDS + rb'"' + _REST + rb")*+"


@cache
def _open_line(delimiter: str) -> re.Pattern[bytes]:
    return re.compile(_OPEN_LINE.replace(b"D", re.escape(delimiter.encode())))


class _SameFailureError(Exception):
    """A row will fail where the last one has failed."""


class CsvRows:
    """Reads rows of CSV, whose first line is the header.

    Args:
        delimiter: one character between two fields; None takes the one of `,` `;` `|` and tabs that
            the header has most often.
        header: the names of the columns, if the parts begin behind the header.
        position: number of bytes before the first part.
    """

    def __init__(
        self,
        delimiter: str | None = None,
        header: tuple[str, ...] | None = None,
        position: int = 0,
    ) -> None:
        csv.field_size_limit(sys.maxsize)  # the module's default is 128 KiB
        self.header = header
        self.delimiter = delimiter  # known once there is a header
        self._lines = _LineCutter(position)
        self._begun: list[tuple[bytes | None, int]] = []  # lines of no row yet, with their ends
        self._start = 0  # of the next row, among these lines
        self._num_used = 0  # of these lines, by the reader
        self._last_failure = _NO_FAILURE
        self._problem: RowProblem | None = None  # of the lines that the reader has used
        self._open_bytes = 0  # of a row whose quote is open

    def feed(self, part: bytes) -> list[RawRow]:
        """Return the rows that end in this part.

        Raises:
            HeaderError: the header can't be read.
        """
        lines = [(line, self._lines.position) for line in self._lines.feed(part)]
        self._begun += lines
        if self._open_bytes and all(self._stays_open(line) for line, _ in lines):
            self._last_failure = _Failure(len(self._begun), self._last_failure.error)
            self._open_bytes += len(part)
            if self._open_bytes <= MAX_ROW_BYTES:
                return []
        else:
            self._last_failure = _NO_FAILURE
        return list(self._read(is_last=False))

    def _stays_open(self, line: bytes | None) -> bool:
        """Tell whether a quote that is open before a line is open behind it, too."""
        pattern = _open_line(self.delimiter or ",")
        return line is not None and pattern.fullmatch(line) is not None

    def finish(self) -> list[RawRow]:
        """Return the rows that end with the last part.

        Raises:
            HeaderError: the header can't be read, or there is none.
        """
        self._begun += [(line, self._lines.position) for line in self._lines.finish()]
        self._last_failure = _NO_FAILURE
        rows = list(self._read(is_last=True))
        if self.header is None:
            raise HeaderError("has no header; the first line must name the columns")
        return rows

    def _read(self, *, is_last: bool) -> Iterator[RawRow]:
        self._start = self._open_bytes = 0
        self.delimiter = self.delimiter or self._find_delimiter()
        while self._start < len(self._begun):
            self._num_used, self._problem = self._start, None
            reader = csv.reader(self._used(), delimiter=self.delimiter or ",", strict=True)
            try:
                for fields in reader:
                    if row := self._row(fields, self._start):
                        yield row
                    self._start, self._problem = self._num_used, None
                break
            except csv.Error as error:
                failure = _Failure(self._num_used, error)
                if failure.end > self._last_failure.end:
                    self._last_failure = failure
            except _SameFailureError:
                failure = self._last_failure
            is_open = failure.end == len(self._begun) and "end of data" in str(failure.error)
            num_bytes = self._begun[-1][1] - self._end_before(self._start)
            if is_open and not is_last and num_bytes <= MAX_ROW_BYTES:
                self._open_bytes = num_bytes
                break  # the rest of the row has not arrived
            yield self._broken(self._start, failure.error, is_open=is_open)
            self._start += 1
        del self._begun[: self._start]
        self._last_failure = _Failure(len(self._begun), self._last_failure.error)

    def _find_delimiter(self) -> str | None:
        """Return the separator in the first line that is not blank; None without such a line."""
        filled = (index for index, (line, _) in enumerate(self._begun) if line and line.strip())
        if (first := next(filled, None)) is None:
            return None
        line, end = self._begun[first]
        header = (line or b"").decode(errors="replace")
        if named := _SEP_LINE.fullmatch(header):
            self._begun[first] = (b"\n", end)  # it names no columns
            return named[1]
        unquoted = re.sub('"[^"]*"', "", header)
        return max(_SEPARATORS, key=unquoted.count)

    def _used(self) -> Iterator[str]:
        """Yield the lines that no row has used yet, as text.

        A row that failed had its quote open at the end of each line before its failure. So another
        row whose quote is open there fails in the same place, and is not read up to it again.
        Without that, a file in which each line opens a quote would take hours for a megabyte. So
        would one whose quote stays open while its lines arrive one by one.

        Raises:
            _SameFailureError: the row will fail like the last one.
        """
        while self._num_used < len(self._begun):
            if self._start < self._num_used < self._last_failure.end:
                raise _SameFailureError
            line, _ = self._begun[self._num_used]
            self._num_used += 1
            if line is None:
                self._problem = _too_long("line")
                yield "\n" if self._num_used == 1 else "x\n"
                continue
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                self._problem = _not_utf8(error)
                yield line.decode(errors="replace")

    def _row(self, fields: list[str], start: int) -> RawRow | None:
        """Return the row of some fields; a blank line and the header are none."""
        problem, end = self._problem, self._begun[self._num_used - 1][1]
        if not fields and problem is None:
            return None
        if self.header is None:
            if problem is not None:
                raise HeaderError(f"has a header that can't be read: {problem}")
            self.header = _header(fields)
            return None
        if end - self._end_before(start) > MAX_ROW_BYTES:
            problem = problem or _too_long("row")
        elif problem is None and len(fields) != len(self.header):
            text = f"has {len(fields)} fields, but the header has {len(self.header)}"
            problem = RowProblem("invalid_input", text)
        value = None if problem else dict(zip(self.header, fields, strict=True))
        return RawRow(value, problem, end)

    def _end_before(self, start: int) -> int:
        return (
            self._begun[start - 1][1]
            if start
            else self._begun[0][1] - len(self._begun[0][0] or b"")
        )

    def _broken(self, start: int, error: csv.Error, *, is_open: bool) -> RawRow:
        """Return a row of one line, the first one of a row whose quotes break the rules."""
        line, end = self._begun[start]
        text = f"no CSV: {error}"
        if "new-line character" in str(error):
            text = "no CSV: a carriage return alone; end lines as Unix or Windows does"
        if is_open:
            shown = (line or b"").partition(_QUOTE)[2][:_SHOWN_BYTES].decode(errors="replace")
            text = f"a quote is never closed: {shown!r}; write it twice inside of quotes"
        if self.header is None:
            raise HeaderError(f"has a header that can't be read: {text}")
        return RawRow(None, RowProblem("invalid_input", text), end)


def _header(fields: list[str]) -> tuple[str, ...]:
    names = tuple(field.strip() for field in fields)
    twice = sorted(name for name, number in Counter(names).items() if name and number > 1)
    if twice:
        raise HeaderError(f"has the column {twice[0][:_SHOWN_BYTES]!r} more than once; rename one")
    return names


def _too_long(noun: str) -> RowProblem:
    text = f"the {noun} has more than {MAX_ROW_BYTES:,} bytes; shorten it"
    return RowProblem("too_large", text)


def _not_utf8(error: UnicodeDecodeError) -> RowProblem:
    byte = error.object[error.start]
    text = f"not UTF-8: byte 0x{byte:02x} at position {error.start} of its line; encode it as UTF-8"
    return RowProblem("invalid_input", text)


def split_names(text: str) -> tuple[str, ...]:
    """Split names of columns at commas; a name that contains a comma stands in double quotes.

    Raises:
        ValueError: a quote is not closed.
    """
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{text!r} has a double quote that is not closed") from error
    return tuple(name.strip() for name in names)
