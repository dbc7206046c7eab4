"""Named columns out of a CSV, JSONL or parquet file, with errors that name file, row and column.

Rows are counted from 1, without a CSV's header and without blank lines. What the values mean:
`training.data.labels`. Columns of a data set: `training.data.hub_dataset`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from deltas.errors import did_you_mean
from training.errors import DataError, listing

SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".ndjson": "", ".parquet": ""}
_OTHER_SEPARATORS = ",;\t|"
_LARGEST_BLOCK = 2**31 - 1


@dataclass(frozen=True)
class Columns:
    """Some columns of one file, or of one split of a data set.

    Attributes:
        path: the file, or what messages call the split.
        num_rows: length of every column.
        values: by column name; strings only in CSV and TSV, whatever the file says elsewhere.
        label_names: the label column's names in the order that the data set states, if it does.
    """

    path: Path | str
    num_rows: int
    values: dict[str, list[Any]]
    label_names: tuple[str, ...] = ()

    @property
    def is_text_only(self) -> bool:
        """True for formats without types, where numbers and lists arrive as text."""
        return isinstance(self.path, Path) and bool(SUFFIXES[self.path.suffix.lower()])

    @property
    def name(self) -> str:
        """What notes call it: a file without its folders."""
        return self.path.name if isinstance(self.path, Path) else self.path

    @property
    def noun(self) -> str:
        """The word for what it is."""
        return "file" if isinstance(self.path, Path) else "split"


def read_columns(path: Path, wanted: Sequence[str]) -> Columns:
    """Read the wanted columns.

    Raises:
        DataError: no such file, another format, not UTF-8, malformed, without rows, or a column is
            missing.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"ends in {suffix or 'nothing'}; known: {', '.join(SUFFIXES)}", path=path)
    if not path.is_file():
        beside = [item.name for item in path.parent.glob("*") if item.suffix.lower() in SUFFIXES]
        hint = did_you_mean(path.name, beside)
        problem = "is a folder; name a file in it" if path.is_dir() else f"no such file.{hint}"
        raise DataError(problem, path=path)
    if suffix == ".parquet":
        values = _read_parquet(path, wanted)
    else:
        _check_encoding(path)
        values = _read_csv(path, wanted) if SUFFIXES[suffix] else _read_jsonl(path, wanted)
    num_rows = len(values[wanted[0]])
    if num_rows == 0:
        raise DataError("no rows; at least one is needed", path=path)
    return Columns(path, num_rows, values)


def _check_encoding(path: Path) -> None:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            for _ in lines:
                pass
    except UnicodeDecodeError as error:
        start = path.read_bytes()[:2]
        guess = "it looks like UTF-16; " if start in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"not UTF-8 ({error.reason}, byte 0x{error.object[error.start]:02x}); {guess}save it "
            "as UTF-8, for example "
            f"with `iconv -f {'UTF-16' if guess else 'WINDOWS-1252'} -t UTF-8`",
            path=path,
        ) from error
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", path=path) from error


def require(path: Path | str, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a choice of columns that a file or split with these names does not have.

    Raises:
        DataError: a wanted column is missing, or is there more than once.
    """
    noun = "file" if isinstance(path, Path) else "split"
    for column in wanted:
        if column not in names:
            hint = did_you_mean(column, names)
            raise DataError(
                f"no such column; the {noun} has {listing(names)}.{hint}", path=path, column=column
            )
        if list(names).count(column) > 1:
            raise DataError(
                f"the {noun} has this column more than once; rename one", path=path, column=column
            )


def plain(values: Sequence[Any]) -> list[Any]:
    """Values as texts and numbers: some writers of parquet store texts as bytes, and decimals."""
    return [_plain(value) if isinstance(value, Decimal | bytes) else value for value in values]


def _plain(value: Decimal | bytes) -> float | str | bytes:
    if isinstance(value, Decimal):
        return float(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _read_csv(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    delimiter = SUFFIXES[path.suffix.lower()]
    _check_separator(path, delimiter)
    try:
        try:
            return _parse_csv(path, wanted, delimiter, block_size=2**20)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
        # A row is longer than a block: a long text, or a quote that is never closed.
        size = min(path.stat().st_size + 1, _LARGEST_BLOCK)
        return _parse_csv(path, wanted, delimiter, block_size=size)
    except pa.ArrowInvalid as error:
        raise _malformed(path, delimiter, str(error)) from error


def _parse_csv(
    path: Path, wanted: Sequence[str], delimiter: str, block_size: int
) -> dict[str, list[Any]]:
    parse = pa_csv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=None
    )
    # Threads would parse faster but lose the row numbers in errors.
    read = pa_csv.ReadOptions(use_threads=False, block_size=block_size)
    with pa_csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    require(path, wanted, names)
    # Every column as text: guessed types would turn the label 01 into 1 and a text into a date.
    convert = pa_csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.string()),
        strings_can_be_null=False,
    )
    table = pa_csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    return {column: table[column].to_pylist() for column in wanted}


def _check_separator(path: Path, delimiter: str) -> None:
    """Some programs write ";" into what they call CSV: then all the header is one name.

    Read before the parser, which would stumble over the commas in the rows first.
    """
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            header = next((names for names in csv.reader(lines, delimiter=delimiter) if names), [])
        except csv.Error:  # the parser says what is wrong
            return
    # A line break inside a name is a quote that is never closed, as a rule.
    is_one = len(header) == 1 and "\n" not in header[0]
    others = _OTHER_SEPARATORS.replace(delimiter, "")
    found = [other for other in others if is_one and other in header[0]]
    if found:
        raise DataError(
            f"the header has no {delimiter!r}: {header[0]!r}; fields must be separated by "
            f"{delimiter!r}, not by {found[0]!r}",
            path=path,
        )


def _malformed(path: Path, delimiter: str, reason: str) -> DataError:
    """Turn the parser's message (which counts the header, and repeats the row) into ours."""
    match = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if match is None:
        return DataError(f"not a {path.suffix[1:].upper()} file ({reason[:200]})", path=path)
    row, expected, found = map(int, match.groups())
    return DataError(
        f"{found} fields, the header has {expected}; a field with a {delimiter!r}, a "
        'line break or a quote must stand in "double quotes", which must be closed',
        path=path,
        row=row - 1,
    )


def _read_jsonl(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {column: [] for column in wanted}
    row = 0
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row += 1
            item = _parse_line(path, row, number, line)
            _require_keys(path, row, wanted, item)
            for column in wanted:
                values[column].append(item[column])
    return values


def _parse_line(path: Path, row: int, number: int, line: str) -> dict[str, Any]:
    try:
        item = json.loads(line.strip())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply, or a number without end"
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at character {error.colno}"
        raise DataError(
            f"line {number} is not JSON ({reason}); each "
            'line must hold one object like {"text": "...", "label": "..."}',
            path=path,
            row=row,
        ) from error
    if not isinstance(item, dict):
        raise DataError(
            f"line {number} holds a {type(item).__name__}; each line must hold one object (JSON "
            "Lines, not one JSON array)",
            path=path,
            row=row,
        )
    return item


def _require_keys(path: Path, row: int, wanted: Sequence[str], item: dict[str, Any]) -> None:
    for column in wanted:
        if column not in item:
            hint = did_you_mean(column, item)
            raise DataError(
                f"missing; the row has {listing(item)}.{hint}", path=path, row=row, column=column
            )


def _read_parquet(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    try:
        require(path, wanted, pq.read_schema(path).names)
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"not a sound parquet file ({error})", path=path) from error
    return {column: plain(table[column].to_pylist()) for column in wanted}
