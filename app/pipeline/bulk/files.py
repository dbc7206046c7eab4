"""Opens the files of rows: CSV and its like, JSON Lines, parquet, and standard input.

A source reads its rows once, in order. Its position tells where a later reading goes on: bytes of a
text, rows of a parquet file. `app.pipeline.bulk.rows` reads the texts.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, cast

from app.pipeline.bulk.rows import CsvRows, HeaderError, JsonLines, RawRow
from deltas.errors import did_you_mean

if TYPE_CHECKING:
    import pyarrow.parquet

Suffixed = Literal["csv", "tsv", "jsonl", "parquet"]

STANDARD = "-"  # standard input or output
ANSWERED = ".predictions"  # ends the stem of an output that is not named
SUFFIXES: Mapping[str, Suffixed] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_UNPACK = "Unpack it, or pipe its rows: gunzip -c FILE | deltabert predict - --format csv"
_REMEDIES = {
    ".json": "If each line is an object, give its format: --format jsonl. Of an array, "
    "`jq -c '.[]'` makes such lines",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV UTF-8"),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"), _UNPACK),
}
_PART_BYTES = 2**18
_PARQUET_ROWS = 1024


class FileError(Exception):
    """A file of rows can't be used."""


@dataclass(frozen=True)
class InputFile:
    """A file of rows; without a path it is standard input."""

    path: Path | None
    suffixed: Suffixed

    @property
    def name(self) -> str:
        """The name for messages and for the column `file`."""
        return STANDARD if self.path is None else self.path.name

    def open(self) -> RowSource:
        """Open the file.

        Raises:
            FileError: the file can't be read.
        """
        if self.suffixed == "parquet":
            assert self.path is not None  # `input_file` refuses others
            return ParquetSource(self.path)
        stream = sys.stdin.buffer if self.path is None else self.path.open("rb")
        return TextSource(stream, self.suffixed)


def input_file(name: str, suffixed: Suffixed | None = None) -> InputFile:
    """Return the file of a name.

    Args:
        name: a path, or "-" for standard input.
        suffixed: the format; None takes it from the suffix.

    Raises:
        FileError: no such file, or an unknown format.
    """
    if name == STANDARD:
        if suffixed in (None, "parquet"):
            known = "csv, tsv or jsonl"
            raise FileError(f"standard input has no suffix; give its format: --format {known}")
        return InputFile(None, suffixed)
    path = Path(name)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileError(
            f"{name}: no regular file; give it as standard input: deltabert predict - --format csv "
            f"< {shlex.quote(name)}"
        )
    if not path.is_file():
        siblings = path.parent.glob("*") if path.parent.is_dir() else ()
        others = [item.name for item in siblings if item.suffix in SUFFIXES]
        raise FileError(f"{name}: no such file.{did_you_mean(path.name, others)}".rstrip("."))
    found = suffixed or SUFFIXES.get(path.suffix.lower())
    if found is None:
        known = ", ".join(SUFFIXES)
        remedy = _REMEDIES.get(path.suffix.lower(), "Rename it, or give its format: --format csv")
        raise FileError(f"{name}: ends in {path.suffix or 'nothing'}; known are {known}. {remedy}")
    return InputFile(path, found)


def input_files(name: str, suffixed: Suffixed | None = None) -> list[InputFile]:
    """Return the file of a name, or the files of a folder in the order of their names.

    Files of a folder have a known suffix; hidden ones and `*.predictions.*` are left out.

    Raises:
        FileError: no such file, an unknown format, or a folder without files.
    """
    folder = Path(name)
    if name == STANDARD or not folder.is_dir():
        return [input_file(name, suffixed)]
    found = [
        InputFile(path, suffixed or SUFFIXES[path.suffix.lower()])
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.stem.endswith(ANSWERED)
        and path.is_file()
    ]
    if not found:
        raise FileError(f"{name}: a folder without files of rows; known are {', '.join(SUFFIXES)}")
    return found


class RowSource(Protocol):
    """Reads the rows of a file."""

    has_header: bool  # each row has the columns of a header

    def columns(self) -> tuple[str, ...]:
        """Return the names of the header, or of the first row; call it before `rows`."""

    def rows(self, position: int = 0) -> Iterator[RawRow]:
        """Yield the rows behind a position."""

    def close(self) -> None:
        """Close the file."""


class TextSource:
    """Reads CSV or JSON Lines from a stream of bytes."""

    def __init__(self, stream: BinaryIO, suffixed: Suffixed) -> None:
        self._stream = stream
        self.has_header = suffixed != "jsonl"
        self._parser: CsvRows | JsonLines = (
            CsvRows("\t" if suffixed == "tsv" else None) if self.has_header else JsonLines()
        )
        self._read: list[RawRow] = []  # rows that `columns` has read
        self._has_ended = False

    def columns(self) -> tuple[str, ...]:
        """Return the names of the header, or of the first row.

        Raises:
            HeaderError: there is no header, or it can't be read.
        """
        while not (self._parser.header or self._read or self._has_ended):
            self._read += self._next_part()
        if self._parser.header:
            return self._parser.header
        first = self._read[0].value if self._read else None
        return tuple(first) if isinstance(first, dict) else ()

    def rows(self, position: int = 0) -> Iterator[RawRow]:
        """Yield the rows behind a position, which only files can have."""
        if position:
            self._stream.seek(position)
            self._read, self._has_ended = [], False
            self._parser = (
                CsvRows(self._parser.delimiter, self._parser.header, position)
                if isinstance(self._parser, CsvRows)
                else JsonLines(position)
            )
        yield from self._read
        self._read = []
        while not self._has_ended:
            yield from self._next_part()

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def _next_part(self) -> list[RawRow]:
        part = self._stream.read(_PART_BYTES)
        if part:
            return self._parser.feed(part)
        self._has_ended = True
        return self._parser.finish()


class ParquetSource:
    """Reads a parquet file, some rows at a time.

    Raises:
        FileError: the file is no parquet.
    """

    has_header = True

    def __init__(self, path: Path) -> None:
        import pyarrow  # takes 0.2 s, which other files need not wait for
        import pyarrow.parquet

        try:
            self._file: pyarrow.parquet.ParquetFile = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise FileError(f"{path}: no parquet file ({str(error)[:100]})") from error

    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns.

        Raises:
            HeaderError: two columns have one name.
        """
        names = tuple(self._file.schema_arrow.names)
        if len(set(names)) < len(names):
            raise HeaderError("has two columns of one name; rename one")
        return names

    def rows(self, position: int = 0) -> Iterator[RawRow]:
        """Yield the rows behind some rows; row groups before them are not read."""
        groups: list[int] = []
        skipped = 0
        for number in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(number).num_rows
            if not groups and skipped + size <= position:
                skipped += size
            else:
                groups.append(number)
        end = skipped
        for batch in self._file.iter_batches(_PARQUET_ROWS, row_groups=groups) if groups else ():
            for value in cast("list[dict[str, Any]]", batch.to_pylist()):
                end += 1
                if end > position:
                    yield RawRow(value, None, end)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
