"""What a user can do wrong before training starts.

Each message says what is wrong, which value, what is allowed and what to do next.

TrainingError
├── TaskError      no such task, or a task name that can't be used (carries near matches)
├── DataError      rows that are missing, unreadable or wrong (carries file, row and column)
└── ConfigError    options that don't fit each other or the data
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltas.errors import did_you_mean, near_matches

_MOST_LISTED = 20


def listing(names: Iterable[str]) -> str:
    """Names for a message, in their order, with a cap."""
    shown = list(names)
    if len(shown) <= _MOST_LISTED:
        return ", ".join(shown) or "none"
    return ", ".join(shown[:_MOST_LISTED]) + f" and {len(shown) - _MOST_LISTED} more"


class TrainingError(Exception):
    """Root of everything this package raises on purpose."""


class TaskError(TrainingError):
    """No task has that name.

    Attributes:
        name: the name as given.
        available: all known names.
        suggestions: known names that look like `name`, best first.
    """

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name = name
        self.available = list(available)
        self.suggestions = near_matches(name, self.available)
        hint = did_you_mean(name, self.available)
        super().__init__(
            f"unknown task {name[:128]!r}.{hint} Available: {listing(self.available)}. "
            "For data of your own use --train-file or --dataset, --text-columns and --label-column"
        )


class DataError(TrainingError):
    """Rows that can't be used; nothing of them is.

    Attributes:
        problem: what is wrong, what is allowed, what to do next.
        path: the file or folder, or what to call the split of a data set; None when the data don't
            come from one.
        row: 1-based number of the offending row, header not counted; None when it isn't about one
            row.
        column: the offending column, or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: Path | str | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = path
        self.row = row
        self.column = column
        where = [str(path)] if path is not None else []
        where += [f"row {row}"] if row is not None else []
        where += [f"column {column!r}"] if column is not None else []
        super().__init__(f"{', '.join(where)}: {problem}" if where else problem)


class ConfigError(TrainingError):
    """Options that can't be meant together, or that the data at hand can't satisfy."""
