"""Reads named columns from a CSV, JSONL or parquet file.

Errors name the file, the row and the column; rows are counted from 1, without a CSV's header and
without blank lines. No value is changed: `007`, `NA` and `true` stay texts in CSV. That is why
pandas reads none of these: it fills short CSV rows up without an error, renames columns that occur
twice, and turns integers with gaps into floats. `training.data.labels` interprets the values;
columns of a data set come from `training.data.hub_dataset`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from deltas.errors import did_you_mean
from training.errors import DataError, listing

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Columns:
    """Some columns of one file, or of one split of a data set."""

    path: Path | str  # the file, or the name of the split in messages
    num_rows: int
    values: dict[str, list[Any]]  # only strings in CSV and TSV, any type elsewhere
    label_names: tuple[str, ...] = ()  # in the data set's own order, if it states them
    reading_notes: tuple[str, ...] = ()  # sentences on how the values were read
    warnings: tuple[str, ...] = ()  # sentences on what looked odd; they were also logged

    @property
    def is_text_only(self) -> bool:
        """True for formats without types, in which numbers and lists arrive as text."""
        return isinstance(self.path, Path) and self.path.suffix.lower() in _DELIMITERS

    @property
    def name(self) -> str:
        """The name for notes: a file without its folders, or the split."""
        return self.path.name if isinstance(self.path, Path) else self.path

    @property
    def noun(self) -> str:
        """Either "file" or "split"."""
        return "file" if isinstance(self.path, Path) else "split"


def read_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """Read the wanted columns of a file.

    Raises:
        DataError: the file is missing, in another format, not UTF-8, malformed or without rows, or
            a column is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"ends in {suffix or 'nothing'}; known: {', '.join(_READERS)}", path=path)
    if path.is_dir():
        raise DataError("is a folder; name a file in it", path=path)
    if not path.is_file():
        others = [item.name for item in path.parent.glob("*") if item.suffix.lower() in _READERS]
        hint = did_you_mean(path.name, others)
        raise DataError(f"no such file{hint and f'.{hint}'}", path=path)
    values = _READERS[suffix](path, wanted)
    num_rows = len(values[wanted[0]])
    if num_rows == 0:
        raise DataError("no rows; at least one is needed", path=path)
    return Columns(path, num_rows, values, reading_notes=(f"{path.name}: {num_rows:,} rows",))


def require(path: Path | str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Check that a file or split with the columns `names` has each wanted column once.

    Raises:
        DataError: a wanted column is missing, or occurs more than once.
    """
    noun = "file" if isinstance(path, Path) else "split"
    for column in wanted:
        count = list(names).count(column)
        if count == 1:
            continue
        problem = f"the {noun} has this column {count} times; rename one"
        if not count:
            hint = did_you_mean(column, names)
            problem = f"no such column; the {noun} has {listing(names)}.{hint}"
        raise DataError(problem, path=path, column=column)


def plain(value: Any) -> Any:
    """Return a decimal as a float, and bytes as text if they are UTF-8; keep any other value.

    Some writers of parquet store texts as bytes and numbers as decimals.
    """
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    return value


def parquet_label_names(path: Path, column: str) -> tuple[str, ...]:
    """Return the label names that `datasets` writes into a parquet file's header, if it has any."""
    import pyarrow.parquet as pq

    try:
        header = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        return tuple(header["info"]["features"][column]["names"])
    except (ValueError, KeyError, TypeError):
        return ()


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file for reading; text that isn't UTF-8 is an error that says how to mend it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        start = path.read_bytes()[:2]
        guess = "it looks like UTF-16; " if start in (b"\xff\xfe", b"\xfe\xff") else ""
        coding = "UTF-16" if guess else "WINDOWS-1252"
        problem = (
            f"not UTF-8 ({error.reason}, byte 0x{error.object[error.start]:02x}); {guess}save it "
            f"as UTF-8, for example with `iconv -f {coding} -t UTF-8`"
        )
        raise DataError(problem, path=path) from error
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", path=path) from error


def _read_csv(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    delimiter = _DELIMITERS[path.suffix.lower()]
    values: dict[str, list[Any]] = {column: [] for column in wanted}
    csv.field_size_limit(sys.maxsize)  # the module's default is 128 KiB
    with _open_text(path) as lines:
        rows = filter(None, csv.reader(lines, delimiter=delimiter))
        header = next(rows, [])
        _check_delimiter(path, header, delimiter)
        require(path, wanted, header)
        for row, fields in enumerate(rows, start=1):
            if len(fields) != len(header):
                raise DataError(
                    f"{len(fields)} fields, the header has {len(header)}; a field with a "
                    f"{delimiter!r}, a line break or a quote must stand in "
                    '"double quotes", which must be closed',
                    path=path,
                    row=row,
                )
            for column in wanted:
                values[column].append(fields[header.index(column)])
    return values


def _check_delimiter(path: Path, header: list[str], delimiter: str) -> None:
    """Refuse a header that has another delimiter: some programs write ";" into CSV files."""
    if not header:
        raise DataError("an empty file; a header with the columns' names is needed", path=path)
    others = _OTHER_DELIMITERS.replace(delimiter, "")
    found = [other for other in others if len(header) == 1 and other in header[0]]
    # A line break inside a name is a quote that is never closed, as a rule.
    if found and "\n" not in header[0]:
        wanted = f"fields must be separated by {delimiter!r}, not by {found[0]!r}"
        raise DataError(f"the header has no {delimiter!r}: {header[0]!r}; {wanted}", path=path)


def _read_jsonl(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {column: [] for column in wanted}
    with _open_text(path) as lines:
        filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        for row, (number, line) in enumerate(filled, start=1):
            item, problem = _parse_line(line)
            if problem:
                raise DataError(f"line {number} {problem}", path=path, row=row)
            for column in wanted:
                if column not in item:
                    problem = f"missing; the row has {listing(item)}.{did_you_mean(column, item)}"
                    raise DataError(problem, path=path, row=row, column=column)
                values[column].append(item[column])
    return values


def _parse_line(line: str) -> tuple[dict[str, Any], str]:
    """Return a line's object, and what is wrong with the line, or ""."""
    try:
        item = json.loads(line.strip())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply, or a number with too many digits"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at character {error.colno}"
        example = '{"text": "...", "label": "..."}'
        return {}, f"is not JSON ({reason}); each line must hold one object like {example}"
    if not isinstance(item, dict):
        kind = type(item).__name__
        return {}, f"holds a {kind}; each line must hold one object (JSON Lines, not an array)"
    return item, ""


def _read_parquet(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        require(path, wanted, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
        table.validate(full=True)  # text that isn't UTF-8 would fail much later, without a name
    except (pa.ArrowException, OSError) as error:
        problem = f"not a sound parquet file ({error}); write or fetch it again"
        raise DataError(problem, path=path) from error
    return {column: [plain(value) for value in table[column].to_pylist()] for column in wanted}


_READERS: dict[str, Callable[[Path, Sequence[str]], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
