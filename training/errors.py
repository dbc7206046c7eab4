"""Errors that a user can cause, and the exit codes of the commands.

Each message says what is wrong, which value, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import deltas.errors
from deltas.errors import did_you_mean, near_matches, shortened

_MAX_LISTED = 20
_MAX_NAME = 100  # characters of a name in a message
_MAX_PROBLEM = 1000


def run_command(command: Callable[[], int], interrupted: str = "stopped") -> int:
    """Run a command like `deltas.errors.run_command`, with the errors of this package.

    Wrong options are misuse.
    """
    return deltas.errors.run_command(
        command, interrupted, (TrainingError,), misuse=(ConfigError, TaskError)
    )


def listing(names: Iterable[str]) -> str:
    """Join names for a message, in their order; after twenty names count the others."""
    shown = [shortened(name, _MAX_NAME) for name in names]
    if len(shown) <= _MAX_LISTED:
        return ", ".join(shown) or "none"
    return ", ".join(shown[:_MAX_LISTED]) + f" and {len(shown) - _MAX_LISTED} more"


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: "1 row", "2,000 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class TrainingError(Exception):
    """Root of all errors that this package raises on purpose."""


class TaskError(TrainingError):
    """No task has the given name; carries all known names and those that look like it."""

    def __init__(self, name: str, available: Iterable[str]) -> None:
        self.name = name
        self.available = list(available)
        self.suggestions = near_matches(name, self.available)
        super().__init__(
            f"unknown task {name[:128]!r}.{did_you_mean(name, self.available)} Available: "
            f"{listing(self.available)}. For your own data use --train-file or --dataset, "
            "--text-columns and --label-column"
        )


class DataError(TrainingError):
    """Rows can't be used; none of them is. Rows are counted from 1, without the header.

    `path` is a file or folder, or the name of a data set's split; None for rows from elsewhere.
    The problem may quote the rows: it is one line of at most 1,000 characters.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: Path | str | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        self.problem = problem = shortened(problem, _MAX_PROBLEM)
        self.path = path
        self.row = row
        self.column = column
        where = [str(path)] if path is not None else []
        where += [f"row {row}"] if row is not None else []
        where += [f"column {column!r}"] if column is not None else []
        super().__init__(f"{', '.join(where)}: {problem}" if where else problem)


class ConfigError(TrainingError):
    """Options contradict each other, or the data can't satisfy them."""
