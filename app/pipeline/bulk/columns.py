"""Takes from each row the texts that the tasks read, and the columns that go into the output.

The columns of the texts are the task's fields, or `text` and `text_pair`, or those that the caller
names. `id` goes into the output if it is there; other columns do if the caller names them.
`app.pipeline.bulk.rows` reads the rows, `app.pipeline.bulk.output` writes the answers.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.errors import InvalidInputError, TooLargeError
from app.pipeline.bulk.rows import HeaderError, RawRow, RowProblem
from app.pipeline.pipeline import read_texts
from deltas import TaskSpec
from deltas.backbone.tokenizer import GENERIC_FIELDS
from deltas.errors import did_you_mean

ALL = "*"  # a name that stands for all columns
_USUAL = "id"
_MAX_LISTED = 20

RowTexts = tuple[tuple[str, ...], ...]  # the texts of a row for each task


@dataclass(frozen=True)
class ColumnChoice:
    """The columns that the caller names.

    Attributes:
        texts: columns with the texts, in the order of the fields; empty for the usual ones.
        keep: columns that go into the output; empty for `id` alone, if it is there.
    """

    texts: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


class ColumnReader:
    """Reads texts and kept columns from rows.

    Args:
        tasks: the tasks that answer, in the order of the answers.
        choice: the columns that the caller names.
        max_chars: most characters in one text.
        max_kept: most columns that go into the output; None for any number.

    Raises:
        HeaderError: the named columns are more or fewer than the fields of a task.
    """

    def __init__(
        self,
        tasks: Sequence[TaskSpec],
        choice: ColumnChoice,
        max_chars: int,
        *,
        max_kept: int | None = None,
    ) -> None:
        self._tasks = tasks
        self._choice = choice
        self._max_chars = max_chars
        self._max_kept = max_kept
        self.kept: tuple[str, ...] = ()  # known from the first row on
        for task in tasks:
            if choice.texts and len(choice.texts) != len(task.text_fields):
                fields = _listed(task.text_fields)
                raise HeaderError(
                    f"is read by {task.name!r}, which takes {fields}; name that many columns of "
                    f"texts, not {len(choice.texts)}"
                )

    def begin(self, columns: Iterable[str], *, is_header: bool) -> None:
        """Choose the kept columns by a header, or by the columns of the first row.

        Raises:
            HeaderError: the header lacks a column that is kept, or that a task reads; or there are
                too many columns to keep.
        """
        given = tuple(columns)
        # Spreadsheets write columns without a name behind the last one.
        has_several = given.count("") > 1
        names = tuple(name for name in given if name) if has_several else given
        known = {*names, ALL}
        missing = [name for name in self._choice.keep if name not in known]
        if is_header:
            for task in self._tasks:
                missing += [] if self._fields(task, names) else self._wanted(task)[:1]
        if missing and is_header:
            hint = did_you_mean(missing[0], names)
            lacking = _listed(dict.fromkeys(missing), " and ")
            raise HeaderError(f"has no column {lacking}; it has {_listed(names)}.{hint}")
        # Lines of JSON name their columns one by one, so that any may have it.
        keep = self._choice.keep or ((_USUAL,) if _USUAL in names or not is_header else ())
        self.kept = names if ALL in keep else tuple(dict.fromkeys(keep))
        if self._max_kept is not None and len(self.kept) > self._max_kept:
            raise HeaderError(
                f"has {len(self.kept):,} columns to keep; at most {self._max_kept:,} can be kept "
                "here, so name fewer"
            )

    def read(self, row: RawRow) -> RowTexts:
        """Return the texts of a row for each task.

        Raises:
            RowProblem: the row can't be read, or does not fit a task.
        """
        if row.problem is not None:
            raise row.problem
        assert row.value is not None  # it has no problem
        return tuple(self._read(task, row.value) for task in self._tasks)

    def keep(self, row: RawRow) -> dict[str, Any]:
        """Return the kept columns that a row has, as values of JSON."""
        value = row.value if isinstance(row.value, Mapping) else {}
        return {name: _json_value(value[name]) for name in self.kept if name in value}

    def _read(self, task: TaskSpec, value: str | Mapping[str, Any]) -> tuple[str, ...]:
        row: object = value
        names: tuple[str, ...] = ()
        if isinstance(value, Mapping):
            found = self._fields(task, value)
            if found is None:
                text = f"no column {self._wanted(task)[0]!r}; the row has {_listed(value)}"
                raise RowProblem("invalid_input", text)
            names = found
            texts = (_text(value[name]) for name in names)
            row = dict(zip(task.text_fields, texts, strict=True))
        try:
            (found_texts,) = read_texts(task, [row], self._max_chars)
        except InvalidInputError as error:
            problem = error.problems[0]
            columns = dict(zip(task.text_fields, names, strict=False))
            named = columns.get(problem["field"] or "")
            where = f"column {named!r} " if named else ""
            raise RowProblem("invalid_input", f"{where}{problem['problem']}") from None
        except TooLargeError as error:
            text = f"a text has {error.found:,} characters; {error.allowed:,} are allowed"
            raise RowProblem("too_large", text) from None
        return found_texts

    def _fields(
        self, task: TaskSpec, names: Mapping[str, Any] | Sequence[str]
    ) -> tuple[str, ...] | None:
        """Return the columns with a task's texts; None if some are missing."""
        generic = GENERIC_FIELDS[: len(task.text_fields)]
        for wanted in (self._choice.texts,) if self._choice.texts else (task.text_fields, generic):
            if all(name in names for name in wanted):
                return tuple(wanted)
        return None

    def _wanted(self, task: TaskSpec) -> list[str]:
        return list(self._choice.texts or task.text_fields)


def _text(value: Any) -> Any:
    """Return bytes as the text that they are in UTF-8, as some writers of parquet store texts."""
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    return value


def _json_value(value: Any) -> Any:
    """Return a value of parquet as one of JSON: times, decimals and other types become text.

    Bytes that are no UTF-8 become Base64, and numbers that JSON does not have become null.
    """
    value = _text(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _listed(names: Collection[str], between: str = ", ") -> str:
    found = [repr(name[:64]) for name in islice(names, _MAX_LISTED)]
    more = f" and {len(names) - _MAX_LISTED:,} more" if len(names) > _MAX_LISTED else ""
    return (between.join(found) or "none") + more
