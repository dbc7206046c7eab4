"""Finds out how a file of delimited text is written: its separator, and where its header is.

Programs write commas, semicolons, tabs and vertical bars, whatever the file's name says. The
separator is the one under which the header has the wanted columns; the first rows decide between
several. `training.data.files.delimited` reads the rows, and finds out if quotes have a meaning.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from training.data.files.content import is_json, open_text
from training.data.files.spelling import clean_name
from training.errors import DataError

SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}  # with their usual separators
SEPARATORS = (",", ";", "\t", "|")
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "blanks"}
_HEAD_LINES = 200
_HEAD_CHARS = 2**20
# Excel writes and reads this first line, which names the separator.
_SEP_LINE = re.compile(r'"?sep=(.)"?\1*[\r\n]*', re.IGNORECASE)

_ESCAPED = re.compile(r'\\([\\"])')
_RULE = re.compile(r"\s*(:?-{3,}:?)?\s*")


class TextLines:
    """Iterates over the lines of a text file, and remembers how the last one ended."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self._last = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._last = next(self._lines)
        return self._last

    @property
    def end(self) -> str:
        """The last character of the last line: a line feed, a carriage return, or any other."""
        return self._last[-1:]


@dataclass(frozen=True)
class Dialect:
    """States how a file of delimited text is written, apart from its quotes."""

    delimiter: str
    has_sep_line: bool = False  # the first line is Excel's `sep=;`
    skips_blanks: bool = False  # blanks may stand between a separator and a quote
    has_backslashes: bool = False  # they stand before quotes inside of fields

    @property
    def shown(self) -> str:
        """The separator for notes and messages."""
        return _NAMES.get(self.delimiter, repr(self.delimiter))

    def reader(self, lines: Iterator[str], *, quoted: bool) -> Any:
        """Return a reader of the rows of a file, the header first, blank lines included.

        It raises `csv.Error` for a quote that breaks the rules.
        """
        if self.has_sep_line:
            next(lines)
        csv.field_size_limit(sys.maxsize)  # the module's default is 128 KiB
        return csv.reader(
            map(_without_backslashes, lines) if self.has_backslashes else lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
            skipinitialspace=self.skips_blanks and quoted,
            strict=True,
        )


def _without_backslashes(line: str) -> str:
    """Return a line in which quotes are doubled in place of a backslash before each."""
    return _ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", line)


def is_rule(fields: Sequence[str]) -> bool:
    """Return True for a line of dashes, as between header and rows of a table in Markdown."""
    return sum(map(bool, map(str.strip, fields))) > 1 and all(map(_RULE.fullmatch, fields))


def is_blank_row(fields: Sequence[str]) -> bool:
    """Return True for a line without any character but blanks and separators."""
    return not any(fields) or not any(map(str.strip, fields))


def find_dialect(path: Path, wanted: Sequence[str], delimiter: str | None = None) -> Dialect:
    """Find out how a file is written; `delimiter` is the user's, if one is given.

    Raises:
        DataError: the file can't be read as text, or is JSON.
    """
    with open_text(path) as lines:
        head = _read_head(lines)
    if is_json("".join(head)):
        problem = "the content is JSON, whatever the file is called; rename it to end in .jsonl"
        raise DataError(problem, path=path)
    sep_line = _SEP_LINE.fullmatch(head[0]) if head else None
    if sep_line:
        head = head[1:]
        delimiter = delimiter or sep_line[1]
    if delimiter is None:
        usual = SUFFIXES.get(path.suffix.lower(), ",")
        others = [separator for separator in SEPARATORS if separator != usual]
        # The first of equals wins: the usual one.
        delimiter = max((usual, *others), key=lambda each: _fitness(head, each, wanted))
    return Dialect(delimiter, bool(sep_line), _skips_blanks(head, delimiter))


def _read_head(lines: TextIO) -> list[str]:
    head: list[str] = []
    num_chars = 0
    while len(head) < _HEAD_LINES and num_chars < _HEAD_CHARS and (line := lines.readline()):
        head.append(line)
        num_chars += len(line)
    return head


def _fitness(head: Sequence[str], delimiter: str, wanted: Sequence[str]) -> tuple[float, ...]:
    """Return how well a separator fits: wanted columns in the header, rows like it, its fields."""
    header, *rows = _split(head, delimiter) or [[]]
    names = set(map(clean_name, header))
    num_found = sum(clean_name(column) in names for column in wanted)
    if len(header) < 2:
        return num_found, 0.0, 0
    alike = sum(len(fields) == len(header) for fields in rows)
    return num_found, alike / max(1, len(rows)), len(header)


def _split(head: Sequence[str], delimiter: str) -> list[list[str]]:
    """Return the rows of a file's beginning, up to the first quote that breaks the rules.

    Quotes are characters if already the header breaks the rules.
    """
    csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        with suppress(csv.Error):
            for fields in csv.reader(head, delimiter=delimiter, quoting=quoting, strict=True):
                if not is_blank_row(fields):
                    rows.append(fields)
        if rows:
            break
    return rows


def _skips_blanks(head: Sequence[str], delimiter: str) -> bool:
    """Return True if quotes follow separators after a blank only, as in `"a", "b"`."""
    text = "".join(head)
    return delimiter != "\t" and f'{delimiter} "' in text and f'{delimiter}"' not in text
