"""Reads columns of delimited text: CSV, TSV, and files with semicolons or vertical bars.

Whether quotes have a meaning differs between programs. Spreadsheets and Python put a field into
quotes if it contains a separator, a quote or a line break. The TSV files of GLUE have no quoting,
and a stray quote at the start of a field would swallow the rows up to the next quote. So a row that
spans several lines is looked at: if its lines look like rows of their own, tab-separated files are
read again without quoting, and others are refused. `training.data.files.dialect` finds the
separator.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from deltas.errors import near_matches
from training.data.files.columns import Columns, find_columns
from training.data.files.content import open_text
from training.data.files.dialect import Dialect, TextLines, find_dialect, is_blank_row, is_rule
from training.data.files.spelling import clean, clean_name
from training.errors import DataError, counted

_QUOTING_IS_USUAL = ",;"
_HEAD_ROWS = 20  # in which a header may come late
_WHOLE_LINES = "whole lines stand in quotes and are one field each; save the file without them"


@dataclass(frozen=True)
class DelimitedOptions:
    """States how delimited text is written, as far as the user says so; None finds out."""

    delimiter: str | None = None  # one character
    quoting: bool | None = None


@dataclass
class _Reading:
    """The rows of a file under one meaning of its quotes, up to the first error."""

    values: dict[str, list[str]]
    header: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of the wanted columns
    num_rows: int = 0
    num_empty: int = 0  # rows of empty fields, which are left out
    has_rule: bool = False  # a line of dashes follows the header, as in Markdown
    # Numbers of the rows after which the header occurs again; 0 before the first row.
    repeated_headers: list[int] = field(default_factory=list)
    # Rows with a value in a column without a name at the end, and the first: its number and value.
    num_nameless: int = 0
    first_nameless: tuple[int, str] | None = None
    error: DataError | None = None
    first_long: tuple[int, int] | None = None  # number and lines of the first row of several lines
    # Rows whose lines have as many fields as rows: number, lines, and the wanted values in them.
    row_like: list[tuple[int, int, dict[str, set[str]]]] = field(default_factory=list)

    @property
    def swallowing(self) -> tuple[int, int] | None:
        """Number and lines of the first row that contains other rows, which have known values."""
        known = {column: set(values) for column, values in self.values.items()}
        for row, num_lines, inner in self.row_like:
            if any(values and values <= known[column] for column, values in inner.items()):
                return row, num_lines
        return None


def read_delimited(path: Path, wanted: Sequence[str], options: DelimitedOptions) -> Columns:
    """Read the wanted columns of a file; all values are texts.

    Raises:
        DataError: a wanted column is missing, a row has another number of fields than the header,
            or a quote is not closed.
    """
    dialect = find_dialect(path, wanted, options.delimiter)
    reading = _read(path, wanted, dialect, quoted=options.quoting is not False)
    warning, is_quoted = "", options.quoting is not False
    if options.quoting is None and (reading.error or reading.first_long):
        reading, is_quoted, warning = _choose(path, wanted, dialect, reading)
    if reading.error:
        raise reading.error
    rows = counted(reading.num_rows, "row")
    note = f"{path.name}: {rows}, fields separated by {dialect.shown}"
    if not is_quoted:
        note += ", quotes read as characters"
    if reading.has_rule:
        note += ", a line of dashes left out"
    if reading.num_empty:
        note += f", {counted(reading.num_empty, 'row')} of empty fields left out"
    return Columns(
        path,
        reading.num_rows,
        reading.values,
        is_text_only=True,
        reading_notes=(note,),
        warnings=tuple(
            filter(
                None, (warning, _header_warning(path, reading), _nameless_warning(path, reading))
            )
        ),
    )


def _header_warning(path: Path, reading: _Reading) -> str:
    """Return a sentence on headers between the rows, or ""."""
    found = reading.repeated_headers
    if not found:
        return ""
    times = counted(len(found), "time")
    return (
        f"{path.name}: the header occurs again {times} between the rows (first after row "
        f"{found[0]:,}), as if files were joined; these lines were left out"
    )


def _nameless_warning(path: Path, reading: _Reading) -> str:
    """Return a sentence on values in columns without a name, which may be cut off others, or ""."""
    if reading.first_nameless is None:
        return ""
    (row, value), others = reading.first_nameless, reading.num_nameless - 1
    more = f" ({others:,} more such rows follow)" if others else ""
    return (
        f"{path.name}, row {row:,}: {value!r:.100} stands in a column without a name{more}; if a "
        'separator cut a field in two, put such fields into "double quotes", or name the column'
    )


def _choose(
    path: Path, wanted: Sequence[str], dialect: Dialect, quoted: _Reading
) -> tuple[_Reading, bool, str]:
    """Return the reading of a file in which quoting fails or makes long rows.

    Its quotes enclose fields if the second value is True; the third is a warning, or "".
    """
    unquoted = _read(path, wanted, dialect, quoted=False)
    if dialect.delimiter not in _QUOTING_IS_USUAL and not unquoted.error:
        row, problem = quoted.num_rows + 1, "would be malformed"
        if not quoted.error and quoted.first_long:
            row, problem = quoted.first_long[0], f"would span {quoted.first_long[1]:,} lines"
        warning = (
            f"{path.name}, row {row}: if quotes enclosed fields, this row {problem}, but each line "
            f"has the header's {len(unquoted.header)} fields; so quotes were read as characters "
            "(--quoting on overrules)"
        )
        return unquoted, False, warning
    if quoted.error:
        escaped = _read(path, wanted, replace(dialect, has_backslashes=True), quoted=True)
        if not escaped.error and not escaped.swallowing:
            warning = (
                f"{path.name}, row {quoted.num_rows + 1}: quotes inside of fields have a backslash "
                "before them, which was left out (--quoting off reads all quotes as characters)"
            )
            return escaped, True, warning
        further = unquoted.error and (unquoted.error.row or 0) > (quoted.error.row or 0)
        is_better = further and dialect.delimiter not in _QUOTING_IS_USUAL
        return (unquoted, False, "") if is_better else (quoted, True, "")
    if found := quoted.swallowing:
        problem = (
            f"this row spans {found[1]:,} lines that look like rows of their own; its quote seems "
            "to be closed in the wrong place. Mend it, or use --quoting on if all is right, or "
            "--quoting off if quotes enclose no fields in this file"
        )
        quoted.error = DataError(problem, path=path, row=found[0])
    return quoted, True, ""


def _read(path: Path, wanted: Sequence[str], dialect: Dialect, *, quoted: bool) -> _Reading:
    """Read a file up to its end or the first error; one in the header is kept like any other."""
    reading = _Reading({column: [] for column in wanted})
    with open_text(path) as file:
        lines = TextLines(file)
        reader = dialect.reader(lines, quoted=quoted)
        try:
            _read_header(path, wanted, dialect, reader, reading)
            _read_rows(path, dialect, lines, reader, reading)
        except DataError as error:
            reading.error = error
        except csv.Error as error:
            is_open = "unexpected end" in str(error)
            problem = (
                "a quote opens a field in this row and is never closed"
                if is_open
                else "a quoted field goes on after its closing quote; a quote inside of it must be "
                "written twice"
            )
            problem += "; mend it, or use --quoting off if quotes enclose no fields in this file"
            reading.error = DataError(problem, path=path, row=reading.num_rows + 1)
    return reading


def _read_header(
    path: Path, wanted: Sequence[str], dialect: Dialect, reader: Any, reading: _Reading
) -> None:
    header = next((fields for fields in reader if not is_blank_row(fields)), None)
    if header is None:
        raise DataError("an empty file; a header with the columns' names is needed", path=path)
    reading.header = header
    try:
        reading.positions = find_columns(path, wanted, header)
    except DataError as error:
        if "no such column" not in error.problem:
            raise
        if len(header) == 1 and dialect.delimiter in header[0]:
            raise DataError(_WHOLE_LINES, path=path) from error
        hint = _header_hint(wanted, header, dialect, islice(reader, _HEAD_ROWS))
        problem = f"{error.problem} {hint}".rstrip()
        raise DataError(problem, path=path, column=error.column) from error


def _header_hint(
    wanted: Sequence[str], header: Sequence[str], dialect: Dialect, rows: Iterable[Sequence[str]]
) -> str:
    """Return a hint on a header without the wanted columns; `rows` follow it."""
    with suppress(csv.Error):
        for number, fields in enumerate(rows, start=1):
            if {*map(clean_name, wanted)} <= {*map(clean_name, fields)}:
                above = "line" if number == 1 else f"{number:,} lines"
                return f"The columns' names stand further down: delete the {above} above them"
    if len(header) == 1:
        return f"--delimiter names another separator than {dialect.shown}"
    if not any(map(near_matches, wanted, repeat(header))):
        return "Is the first line of the file a header with the columns' names?"
    return ""


def _read_rows(
    path: Path, dialect: Dialect, lines: TextLines, reader: Any, reading: _Reading
) -> None:
    targets = list(zip(reading.values.values(), reading.positions, strict=True))
    width, line = len(reading.header), reader.line_num
    # Columns without a name at the end of a header may be left out by a row.
    fewest = 1 + max(at for at, name in enumerate(reading.header) if clean_name(name))
    usual_end, last_end = lines.end, ""
    for fields in reader:
        num_lines, line = reader.line_num - line, reader.line_num
        is_cut, last_end = usual_end == "\n" and last_end == "\r", lines.end
        if _is_no_row(fields, dialect, reading):
            continue
        if is_cut:
            raise _cut_error(path, reading.num_rows)
        row = reading.num_rows + 1
        if nameless := next(filter(str.strip, fields[fewest:]), ""):
            reading.num_nameless += 1
            reading.first_nameless = reading.first_nameless or (row, nameless)
        if not fewest <= len(fields) <= width and (len(fields) < fewest or any(fields[width:])):
            raise _count_error(path, row, fields, reading.header, dialect)
        for values, position in targets:
            values.append(fields[position])
            if "\0" in values[-1]:
                raise _nul_error(path, row)
        reading.num_rows = row
        if num_lines > 1:
            reading.first_long = reading.first_long or (row, num_lines)
            if inner := _inner_rows(fields, dialect.delimiter, reading):
                reading.row_like.append((row, num_lines, inner))


def _is_no_row(fields: Sequence[str], dialect: Dialect, reading: _Reading) -> bool:
    """Return True, and count it, for a line without values: blank, or the header once more."""
    if not any(fields):
        reading.num_empty += len(fields) > 1
        return True
    header = reading.header
    if len(fields) == 1:
        return not clean(fields[0]) and "\0" not in fields[0]  # such as the end mark of DOS
    # A file that follows another may begin with a byte order mark.
    is_alike = fields[-1] == header[-1] and fields[1:] == header[1:]
    if is_alike and clean_name(fields[0]) == clean_name(header[0]):
        reading.repeated_headers.append(reading.num_rows)
        return True
    if dialect.delimiter == "|" and not reading.num_rows and is_rule(fields):
        reading.has_rule = True
        return True
    return False


def _count_error(
    path: Path, row: int, fields: Sequence[str], header: Sequence[str], dialect: Dialect
) -> DataError:
    """Make the error for a row with too few or too many fields."""
    if any("\0" in field for field in fields):
        return _nul_error(path, row)
    found = counted(len(fields), "field")
    problem = f"{found}, the header has {len(header)}, separated by {dialect.shown}"
    if len(fields) == 1 and dialect.delimiter in fields[0]:
        remedy = _WHOLE_LINES
    elif len(header) == 1:
        remedy = "another separator is named by --delimiter"
    elif len(fields) < len(header):
        remedy = (
            "fill the row up or drop it; a line break inside of a field must stand in "
            '"double quotes", and another separator is named by --delimiter'
        )
    else:
        remedy = (
            f"a field with {dialect.shown}, line breaks or quotes must stand in "
            '"double quotes", which must be closed'
        )
        if len(fields) == len(header) + 1:
            remedy += "; or the header lacks a name, as R leaves out that of the row names"
    return DataError(f"{problem}; {remedy}", path=path, row=row)


def _cut_error(path: Path, row: int) -> DataError:
    problem = (
        "this row ends with a carriage return, while others end with a line feed; if it stands "
        'inside of a text, put the text into "double quotes" or a blank in its place'
    )
    return DataError(problem, path=path, row=row)


def _nul_error(path: Path, row: int) -> DataError:
    problem = "contains a NUL character; mend or drop the row, or fetch the file again"
    return DataError(problem, path=path, row=row)


def _inner_rows(fields: Sequence[str], delimiter: str, reading: _Reading) -> dict[str, set[str]]:
    """Return the values of wanted columns in the lines of a row, if all lines could be rows.

    The first line of a field begins in the middle of a row, and the last one ends there.
    """
    width = len(reading.header)
    columns = dict(zip(reading.positions, reading.values, strict=True))
    inner: dict[str, set[str]] = {column: set() for column in reading.values}
    for start, text in enumerate(fields):
        lines = text.replace("\r\n", "\n").split("\n")
        for number, line in enumerate(lines if len(lines) > 1 else ()):
            first = start if number == 0 else 0
            last = start if number == len(lines) - 1 else width - 1
            parts = line.split(delimiter)
            if len(parts) != last - first + 1:
                return {}
            # The parts at the two ends of the field may be cut off.
            for position, part in enumerate(parts, start=first):
                if position in columns and not (
                    position == start and number in (0, len(lines) - 1)
                ):
                    inner[columns[position]].add(part.strip('"'))
    return inner
