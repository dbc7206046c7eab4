"""Writes the answer of each row as a line of JSON, or as a row of CSV.

A row of the output has the kept columns, then those of the answer, then `error`. With one task the
columns of the answer are the fields of `POST /predict/{task}`: `label`, `decision`, `score` and
`truncated` for a single label. With several tasks, or if a kept column has such a name, they have
the task's name in front: `sst2.label`. Scores have six decimals. A row that could not be answered
has its kept columns and its error, and nothing else.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from app.pipeline.bulk.rows import HeaderError, RowProblem
from app.pipeline.predictions import Prediction
from deltas import TaskSpec
from deltas.manifest import TaskKind

OutputFormat = Literal["csv", "jsonl"]

ROW, ERROR = "row", "error"
_FIELDS: Mapping[TaskKind, tuple[str, ...]] = {
    "single_label": ("label", "decision", "score", "truncated"),
    "multi_label": ("labels", "decision", "truncated"),
    "regression": ("value", "decision", "truncated"),
}
_SCORES = "scores"
_DECIMALS = 6


@dataclass(frozen=True)
class AnsweredRow:
    """A row with its answer.

    Attributes:
        number: position of the row in its file, from 0 on.
        kept: the kept columns.
        answers: a prediction for each task; empty if there is a problem.
        problem: the reason why there is no answer.
    """

    number: int
    kept: Mapping[str, Any]
    answers: Sequence[Prediction] = ()
    problem: RowProblem | None = None


class RowFormat(Protocol):
    """Turns answered rows into bytes; `begin` comes before the first row."""

    def begin(self) -> bytes:
        """Return the bytes before the first row."""

    def rows(self, rows: Sequence[AnsweredRow]) -> bytes:
        """Return the bytes of some rows."""

    def failure(self, problem: RowProblem) -> bytes:
        """Return the bytes of an error that ends the output, and belongs to no row."""


class AnswerColumns:
    """The columns of the output.

    Args:
        names: the name of each task in the columns.
        tasks: the tasks.
        kept: the kept columns.
        with_scores: whether `scores` is one of the columns.

    Raises:
        HeaderError: a kept column has a name that the output needs.
    """

    def __init__(
        self,
        names: Sequence[str],
        tasks: Sequence[TaskSpec],
        kept: Sequence[str],
        *,
        with_scores: bool,
    ) -> None:
        scores = (_SCORES,) if with_scores else ()
        self.fields = [
            (*_FIELDS[task.kind], *(() if task.kind == "regression" else scores)) for task in tasks
        ]
        plain = {field for fields in self.fields for field in fields}
        is_plain = len(tasks) == 1 and not plain & set(kept)
        self._prefixes = [""] if is_plain else [f"{name}." for name in names]
        answers = [
            f"{prefix}{field}"
            for prefix, fields in zip(self._prefixes, self.fields, strict=True)
            for field in fields
        ]
        taken = sorted({ROW, ERROR, *answers} & set(kept))
        if taken:
            raise HeaderError(
                f"has a column {taken[0]!r}, which can't be kept: the output has one; rename it, "
                "or name the other columns to keep"
            )
        self.names = (*kept, *answers, ERROR)

    def values(self, row: AnsweredRow) -> dict[str, Any]:
        """Return the values of an answered row by column, kept ones and error left out."""
        found: dict[str, Any] = {}
        each = zip(row.answers, self._prefixes, self.fields, strict=True)
        for answer, prefix, fields in each if row.answers else ():
            for field in fields:
                found[f"{prefix}{field}"] = _rounded(getattr(answer, field))
        return found


class JsonLinesFormat:
    """Writes one object a row, with the row's number as `row`."""

    def __init__(self, columns: AnswerColumns) -> None:
        self._columns = columns

    def begin(self) -> bytes:
        """Return nothing, since the rows name their columns."""
        return b""

    def rows(self, rows: Sequence[AnsweredRow]) -> bytes:
        """Return the lines of some rows."""
        return b"".join(map(self._line, rows))

    def failure(self, problem: RowProblem) -> bytes:
        """Return a line whose `row` is null."""
        return _json_line({ROW: None, ERROR: _error(problem)})

    def _line(self, row: AnsweredRow) -> bytes:
        answer = {ERROR: _error(row.problem)} if row.problem else self._columns.values(row)
        return _json_line({ROW: row.number, **row.kept, **answer})


class CsvFormat:
    """Writes CSV with a header; lists and scores are JSON within their fields."""

    def __init__(self, columns: AnswerColumns) -> None:
        self._columns = columns

    def begin(self) -> bytes:
        """Return the header."""
        return _csv_lines([self._columns.names])

    def rows(self, rows: Sequence[AnsweredRow]) -> bytes:
        """Return the lines of some rows."""
        lines = []
        for row in rows:
            error = f"{row.problem.code}: {row.problem}" if row.problem else None
            found = {**row.kept, **self._columns.values(row), ERROR: error}
            lines.append([_cell(found.get(name)) for name in self._columns.names])
        return _csv_lines(lines)

    def failure(self, problem: RowProblem) -> bytes:
        """Return a row that has an error alone."""
        empty = [""] * (len(self._columns.names) - 1)
        return _csv_lines([[*empty, f"{problem.code}: {problem}"]])


def format_of(name: OutputFormat, columns: AnswerColumns) -> RowFormat:
    """Return the format of that name."""
    return CsvFormat(columns) if name == "csv" else JsonLinesFormat(columns)


def _error(problem: RowProblem) -> dict[str, str]:
    return {"code": problem.code, "message": str(problem)}


def _json_line(value: Any) -> bytes:
    # A kept text may hold half a surrogate pair, which is no UTF-8: then it is escaped.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue().encode(errors="replace")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {name: round(score, _DECIMALS) for name, score in value.items()}
    return value
