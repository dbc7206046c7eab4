"""Holds named columns of a file, or of a split of a data set, as they were read.

No value is changed by reading: `007`, `NA` and `true` stay texts where a format has no types.
`training.data.files.reader` reads columns from files, `training.data.hub_dataset` from data sets;
`training.data.labels` interprets the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from deltas.errors import did_you_mean
from training.data.files.spelling import clean_name
from training.errors import DataError, listing

Warn: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Columns:
    """Some columns of one file, or of one split of a data set."""

    path: Path | str  # the file, or the name of the split in messages
    num_rows: int
    values: dict[str, list[Any]]  # by the wanted names, in their order
    is_text_only: bool = False  # the format has no types: numbers and lists arrive as text
    # The names of the codes in a column of class labels, in the order of the codes.
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reading_notes: tuple[str, ...] = ()  # sentences on how the values were read
    warnings: tuple[str, ...] = ()  # sentences on what looked odd; they were also logged
    numbers: tuple[int, ...] = ()  # of the rows where they were read; empty for all in order
    files: tuple[tuple[str, int], ...] = ()  # of a split: names and numbers of rows, in order

    @property
    def name(self) -> str:
        """The name for notes: a file without its folders, or the split."""
        return self.path.name if isinstance(self.path, Path) else self.path

    @property
    def noun(self) -> str:
        """Either "file" or "split"."""
        return "file" if isinstance(self.path, Path) else "split"

    def error(self, column: str, problem: str, row: int | None = None) -> DataError:
        """Make the error for a value of a column, or for a whole column."""
        path, number = (self.path, None) if row is None else self._place(row)
        return DataError(problem, path=path, row=number, column=column)

    def where(self, column: str, row: int) -> str:
        """Return the place of a value, for notes."""
        path, number = self._place(row)
        name = path.name if isinstance(path, Path) else path
        return f"{name}, row {number}, column {column!r}"

    def number(self, row: int) -> int:
        """Return a row's number where it was read; `row` counts those that are here, from 1."""
        return self.numbers[row - 1] if self.numbers else row

    def take(self, rows: Sequence[int]) -> Columns:
        """Return some of the rows, which keep their numbers."""
        values = {name: [found[row - 1] for row in rows] for name, found in self.values.items()}
        numbers = tuple(map(self.number, rows))
        return replace(self, num_rows=len(rows), values=values, numbers=numbers)

    def _place(self, row: int) -> tuple[Path | str, int]:
        """Return the file, or the split, that a row was read from, and its number there."""
        number = self.number(row)
        for name, num_rows in self.files:
            if number <= num_rows:
                return f"{self.path}, file {name}", number
            number -= num_rows
        return self.path, number


def find_columns(path: Path | str, wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the position in `names` of each wanted column of a file or split.

    Names that look the same are the same, so that blanks around a name, or line breaks in it, need
    not be spelled.

    Raises:
        DataError: a wanted column is missing, or occurs more than once.
    """
    noun = "file" if isinstance(path, Path) else "split"
    cleaned = [clean_name(name) for name in names]
    positions = []
    for column in wanted:
        found = [position for position, name in enumerate(cleaned) if name == clean_name(column)]
        if len(found) > 1:
            spellings = dict.fromkeys(names[position] for position in found)
            spelled = f", spelled {listing(map(repr, spellings))}" if len(spellings) > 1 else ""
            problem = f"the {noun} has this column {len(found)} times{spelled}; rename one"
            raise DataError(problem, path=path, column=column)
        if not found:
            hint = did_you_mean(column, cleaned) + _comma_hint(wanted, cleaned)
            problem = f"no such column; the {noun} has {listing(names)}.{hint}"
            raise DataError(problem, path=path, column=column)
        positions += found
    return positions


def _comma_hint(wanted: Sequence[str], names: Sequence[str]) -> str:
    """Return a hint if wanted columns look like the parts of one name with a comma."""
    for name in names:
        parts = [part.strip() for part in name.split(",")]
        if len(parts) > 1 and {*parts} <= {*wanted}:
            return f" A name that contains a comma goes into double quotes: '\"{name}\"'"
    return ""


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
