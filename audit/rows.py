"""Reads the rows that deltas are audited on, from files of any form that training reads.

All tasks answer the same rows: a row without a text that one of them needs is left out for all.
Labels are not read. Tested by tests/unit/audit/test_joint.py and tests/unit/audit/test_abstain.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.data.custom import split_names
from training.data.files.delimited import DelimitedOptions
from training.data.files.reader import is_delimited, read_columns
from training.data.texts import with_texts
from training.errors import ConfigError, DataError, listing

if TYPE_CHECKING:
    from deltas.manifest import TaskSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditedRows:
    """The rows of a file that have all of their texts, in order."""

    path: Path
    numbers: list[int]  # in the file, counted from 1
    texts: dict[str, list[str]]  # by column

    def __len__(self) -> int:
        return len(self.numbers)

    def of_columns(self, columns: Iterable[str]) -> list[tuple[str, ...]]:
        """Return the texts of each row in some columns."""
        return list(zip(*(self.texts[column] for column in columns), strict=True))


def columns_of(task: TaskSpec, named: str | None) -> tuple[str, ...]:
    """Return the columns with a task's texts: those that a flag names, or its own fields.

    Raises:
        ConfigError: the task takes another number of texts than columns are named.
    """
    if named is None:
        return task.text_fields
    columns = split_names(named)
    if len(columns) != len(task.text_fields):
        texts = "1 text" if len(task.text_fields) == 1 else f"{len(task.text_fields)} texts"
        raise ConfigError(
            f"--text-columns {named!r} names {len(columns)}, but {task.name!r} takes {texts} "
            f"({listing(task.text_fields)}); leave out one of them, or the tasks of another form"
        )
    return columns


def read_rows(
    path: Path, columns: Iterable[str], options: DelimitedOptions, named: str | None
) -> AuditedRows:
    """Read the rows of a file; `named` is the value of `--text-columns`, for messages.

    Raises:
        ConfigError: options of delimited text, but another file.
        DataError: the file can't be used; names the file, row and column.
    """
    if options != DelimitedOptions() and not is_delimited(path):
        raise ConfigError(f"{path}: --delimiter and --quoting are for delimited text, such as CSV")
    names = list(dict.fromkeys(columns))
    try:
        found = read_columns(path, names, options)
    except DataError as error:
        if error.column is None or named is not None:
            raise
        hint = f"{error.problem.rstrip('.')}. --text-columns names the columns with the texts"
        raise DataError(hint, path=path, row=error.row, column=error.column) from error
    found = with_texts(found, names, logger.warning)
    numbers = [found.number(row) for row in range(1, found.num_rows + 1)]
    return AuditedRows(path, numbers, found.values)
