"""Checks the rows of a request against a task, before anything of it meets other requests.

Which fields a row has is decided by `deltas.rows.row_texts`, the same function for all users of
deltas; here its findings are collected over all rows, and the server's own limits are added.
"""

from __future__ import annotations

from typing import Any

from app.errors import MAX_LISTED, InvalidInputError, Problem, TooLargeError
from deltas import InvalidTextError, TaskSpec
from deltas.rows import row_texts


def list_rows(inputs: Any, max_rows: int, num_targets: int = 1) -> list[Any]:
    """The rows of a request; one that is not a list is a batch of one.

    Raises:
        InvalidInputError: there is none.
        TooLargeError: more rows, counted once per target, than one request may have.
    """
    rows = inputs if isinstance(inputs, list) else [inputs]
    if not rows:
        raise InvalidInputError([Problem(row=None, field="inputs", problem="is an empty list")])
    if len(rows) * num_targets > max_rows:
        what = "rows in one request" if num_targets == 1 else "rows x targets in one request"
        raise TooLargeError(
            what, len(rows) * num_targets, max_rows, "DELTABERT_MAX_ROWS_PER_REQUEST"
        )
    return rows


def read_texts(task: TaskSpec, rows: list[Any], max_chars: int) -> list[tuple[str, ...]]:
    """The texts of each row, in the order of the task's fields.

    Raises:
        InvalidInputError: with all wrong rows, not only the first.
        TooLargeError: a text is too long.
    """
    texts: list[tuple[str, ...]] = []
    problems: list[Problem] = []
    for position, row in enumerate(rows):
        try:
            texts.append(row_texts(task, row, position))
        except InvalidTextError as error:
            problems.append(Problem(row=error.row, field=error.field, problem=error.problem))
            if len(problems) == MAX_LISTED:
                break
    if problems:
        raise InvalidInputError(problems)
    for position, row_of_texts in enumerate(texts):
        for field, text in zip(task.text_fields, row_of_texts, strict=True):
            if len(text) > max_chars:
                what = f"characters in row {position}, field {field!r}"
                raise TooLargeError(what, len(text), max_chars, "DELTABERT_MAX_TEXT_CHARS")
    return texts
