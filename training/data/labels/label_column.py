"""Reads a label column in its form: the label names in order, and each row's code.

Names that look exactly the same are one label (`training.data.files.spelling`). Used for custom
tasks (`training.data.custom`); the labels of GLUE are a table instead: `training.data.tasks`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deltas.errors import did_you_mean
from training.data.files.columns import Columns, Warn
from training.data.files.spelling import clean
from training.data.labels.cells import is_blank, parse_number
from training.data.labels.doubts import find_doubts
from training.data.labels.forms import LabelForm
from training.data.labels.lists import SEPARATOR, bit_of
from training.errors import DataError, listing

if TYPE_CHECKING:
    from training.data.rows import Labels

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_MOST_LABELS = 1000
_LONGEST_LABEL = 256  # characters
_LARGEST_NUMBER = 1e18  # the squares of larger numbers overflow float32


def name_classes(columns: Columns, column: str) -> Columns:
    """Return the columns with names in place of the codes of class labels.

    -1 means that a row has no label, as in many test splits.

    Raises:
        DataError: a code has no name.
    """
    names = columns.class_names.get(column)
    if names is None:
        return columns

    def named(row: int, value: Any) -> Any:
        if isinstance(value, list):
            return [named(row, part) for part in value]
        if value is None or value == -1:
            return None
        if isinstance(value, int) and 0 <= value < len(names):
            return names[value]
        problem = f"{value!r} is no code of a label; the {columns.noun} names {len(names)}"
        raise columns.error(column, problem, row)

    values = [named(row, value) for row, value in enumerate(columns.values[column], 1)]
    return replace(columns, values={**columns.values, column: values})


def join_label_columns(columns: Columns, names: Sequence[str], joined: str) -> Columns:
    """Return the columns with one of lists in place of columns that hold 0 and 1, one a label.

    Raises:
        DataError: a value is neither 0 nor 1.
    """
    lists: list[list[str]] = [[] for _ in range(columns.num_rows)]
    for name in names:
        for row, value in enumerate(columns.values[name], start=1):
            bit = bit_of(value)
            if bit is None:
                problem = (
                    f"{value!r:.100} is neither 0 nor 1, which several label columns must hold, "
                    f"one for each label; else give one column, with labels joined by {SEPARATOR!r}"
                )
                raise columns.error(name, problem, row)
            if bit:
                lists[row - 1].append(clean(name))
    values = {name: found for name, found in columns.values.items() if name not in names}
    stated = {joined: tuple(map(clean, names))}
    return replace(columns, values={**values, joined: lists}, class_names=stated)


def collect_labels(columns: Columns, column: str, form: LabelForm, warn: Warn) -> tuple[str, ...]:
    """Return the label names of the train rows: integers by value, other names alphabetically.

    A data set that states its labels keeps its own order; labels without a row are left out.

    Raises:
        DataError: a value can't be a label, or there are too few or implausibly many labels.
    """
    if form.kind == "regression":
        _check_numbers(columns, column, form)
        return ()
    rows = _names(columns, column, form)
    if not any(rows):
        raise _no_labels(columns, column)
    counts = Counter(name for names in rows for name in names)
    _check_counts(columns, column, counts, fewest=2 if form.kind == "single_label" else 1)
    stated = [clean(name) for name in columns.class_names.get(column, ())]
    if form.lists and form.lists.width:
        stated = list(map(str, range(form.lists.width)))
    for sentence in find_doubts(columns, column, form, rows, stated):
        warn(sentence)
    if set(counts) <= set(stated):
        return tuple(name for name in stated if name in counts)
    if all(_INTEGER.fullmatch(name) for name in counts):
        return tuple(sorted(counts, key=lambda name: (int(name), name)))
    return tuple(sorted(counts))


def encode_labels(columns: Columns, column: str, form: LabelForm, labels: Sequence[str]) -> Labels:
    """Return each row's code, value, or list of 0 and 1.

    Raises:
        DataError: a value doesn't fit the form, or isn't one of `labels`; names the first such row
            and counts the others.
    """
    if form.kind == "regression":
        return _numbers(columns, column, form)
    codes = {label: code for code, label in enumerate(labels)}
    rows = _names(columns, column, form)
    unknown = [
        (row, name) for row, names in enumerate(rows, 1) for name in names if name not in codes
    ]
    if unknown:
        row, name = unknown[0]
        more = f" ({len(unknown) - 1:,} more such labels follow)" if len(unknown) > 1 else ""
        problem = (
            f"label {name!r} does not occur in the train {columns.noun}{more}; allowed: "
            f"{listing(codes)}.{did_you_mean(name, codes)}"
        )
        raise columns.error(column, problem, row)
    if form.kind == "single_label":
        return [codes[names[0]] for names in rows]
    return [[int(label in names) for label in labels] for names in rows]


def _check_counts(columns: Columns, column: str, counts: Counter[str], fewest: int) -> None:
    if len(counts) < fewest:
        found = f"{len(counts)} distinct label ({listing(counts)})"
        problem = f"{found}; at least {fewest} needed to learn anything"
        raise columns.error(column, problem)
    never_repeated = len(counts) > 10 and max(counts.values()) == 1
    if len(counts) > _MOST_LABELS or never_repeated:
        problem = (
            f"{len(counts):,} distinct labels in {columns.num_rows:,} rows; is this the label "
            f"column? At most {_MOST_LABELS:,} labels are possible, and some must repeat. To "
            "predict numbers use --kind regression"
        )
        raise columns.error(column, problem)


def _names(columns: Columns, column: str, form: LabelForm) -> list[list[str]]:
    """Return the label names of every row: exactly one for single label, any number otherwise."""
    values = columns.values[column]
    blank = [row for row, value in enumerate(values, 1) if is_blank(value)]
    if blank and form.kind == "single_label":
        raise _no_labels(columns, column, blank)
    rows = []
    for row, value in enumerate(values, start=1):
        parts = _parts(columns, column, row, form) if form.lists else [value]
        try:
            rows.append(list(dict.fromkeys(_name(part, value) for part in parts)))
        except ValueError as error:
            raise columns.error(column, str(error), row) from error
        if form.kind == "single_label" and len(rows[-1]) != 1:
            problem = f"{len(rows[-1])} labels, while each row of the train rows has one"
            raise columns.error(column, problem, row)
    return rows


def _no_labels(columns: Columns, column: str, blank: Sequence[int] = ()) -> DataError:
    """Make the error for blank rows; without `blank`, for a column in which no row has a label."""
    checked = "column" if columns.noun == "file" else "split and column"
    problem = f"no row has a label here; is this the right {checked}?"
    if 0 < len(blank) < columns.num_rows:
        more = f" ({len(blank) - 1:,} more such rows follow)" if len(blank) > 1 else ""
        problem = f"no label{more}; fill it in or drop the row"
    return columns.error(column, problem, blank[0] if blank else 1)


def _parts(columns: Columns, column: str, row: int, form: LabelForm) -> list[Any]:
    """Return the labels of a row of a column with several labels a row."""
    value = columns.values[column][row - 1]
    assert form.lists is not None
    is_missing = is_blank(value) and not columns.is_text_only
    parts = None if is_missing else form.lists.split(value)
    if parts is None and columns.is_text_only and not form.lists.width:
        parts = value.split(SEPARATOR)  # the train rows have lists, which text writes so
    if parts is None:
        problem = f"{value!r:.100} is not {form.lists.described}; mend or drop the row"
        if is_missing:
            problem = "no list; write an empty one if the row has no label, or drop the row"
        raise columns.error(column, problem, row)
    return parts


def _name(value: Any, cell: Any) -> str:
    """Return a label's name; 1.0 is "1", because pandas writes integers so in columns with gaps.

    `cell` is the whole cell: the value itself, or a list that contains the value.

    Raises:
        ValueError: the value can't be a label's name.
    """
    if is_blank(value):
        if cell is value:
            raise ValueError("no label; fill it in or drop the row")
        raise ValueError(f"{cell!r:.100} has an item without a name; take it out or drop the row")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | tuple | set | dict | bytes) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        hint = (
            " (lists need --kind multi_label)" if isinstance(cell, list) and cell is value else ""
        )
        raise ValueError(f"{value!r:.100} can't be one label; use a text or a number{hint}")
    name = clean(str(value))
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise ValueError(f"{name!r} has half a surrogate pair; labels must be valid Unicode")
    if not 1 <= len(name) <= _LONGEST_LABEL:
        raise ValueError(
            f"a label of {len(name)} characters; from 1 to {_LONGEST_LABEL} are allowed. Is this "
            "the label column?"
        )
    return name


def _check_numbers(columns: Columns, column: str, form: LabelForm) -> None:
    """Refuse train rows without different numbers."""
    if all(map(is_blank, columns.values[column])):
        raise _no_labels(columns, column)
    numbers = set(_numbers(columns, column, form))
    if len(numbers) < 2:
        found = f"every row has the number {numbers.pop():g}"
        problem = f"{found}; at least 2 different ones needed to learn anything"
        raise columns.error(column, problem)


def _numbers(columns: Columns, column: str, form: LabelForm) -> list[float]:
    numbers = []
    for row, value in enumerate(columns.values[column], start=1):
        number = parse_number(value, form.decimal)
        if number is None:
            more = sum(map(is_blank, columns.values[column][row:])) if is_blank(value) else 0
            raise columns.error(column, _number_problem(value, form, more), row)
        if abs(number) > _LARGEST_NUMBER:
            allowed = f"from -{_LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}"
            problem = f"{number:g} is too large; numbers {allowed} can be learned"
            raise columns.error(column, problem, row)
        numbers.append(number)
    return numbers


def _number_problem(value: Any, form: LabelForm, more: int) -> str:
    """Return the problem with a value that is no number; `more` blank ones follow a blank one."""
    usual, other = (".", ",") if form.decimal == "." else (",", ".")
    example = " like 12.5" if form.decimal == "." else " like those of the train rows"
    problem = f"{value!r:.100} is not a finite number{example}, which a regression task needs"
    if is_blank(value):
        follow = f" ({more:,} more such rows follow)" if more else ""
        return f"{problem}{follow}; fill it in or drop the row"
    if isinstance(value, str) and parse_number(value, other) is not None:
        return (
            f"{problem}: its decimal mark is {other!r}, that of the train rows {usual!r}; write "
            "all numbers with the same mark"
        )
    return f"{problem}; mend or drop the row, or use --kind single_label"
