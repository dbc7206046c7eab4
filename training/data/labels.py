"""Interprets a label column: its kind, its label names in order, and each row's code.

Used for custom tasks (`training.data.custom`), whose columns come from `training.data.columns` or
`training.data.hub_dataset`. The labels of GLUE are a table instead: `training.data.tasks`.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltas.errors import did_you_mean
from training.data.columns import Columns
from training.errors import DataError, listing

if TYPE_CHECKING:
    from deltas.manifest import TaskKind
    from training.data.rows import Labels

logger = logging.getLogger(__name__)

SEPARATOR = "|"
_INTEGER = re.compile(r"[+-]?\d+")
_MOST_LABELS = 1000
_LONGEST_LABEL = 256  # characters
_LARGEST_NUMBER = 1e18  # the squares of larger numbers overflow float32


def infer_kind(columns: Columns, column: str) -> TaskKind:
    """Infer a task's kind: lists are multi-label, numbers with fractions regression, else labels.

    1.0 has no fraction: pandas writes integers so where a column has gaps. In CSV a list is a text
    with "|", and a number is any text that reads as one.

    Raises:
        DataError: most values are numbers with fractions, but not all; a value is a mistake.
    """
    values = {row: v for row, v in enumerate(columns.values[column], 1) if not is_blank(v)}
    if columns.is_text_only:
        if any(SEPARATOR in value for value in values.values()):
            return "multi_label"
        numbers = [_as_number(value) for value in values.values()]
    elif any(isinstance(value, list) for value in values.values()):
        return "multi_label"
    else:
        numbers = [{float: value, int: 0.0}.get(type(value)) for value in values.values()]
    if not any(number is not None and not number.is_integer() for number in numbers):
        return "single_label"
    strays = [row for row, number in zip(values, numbers, strict=True) if number is None]
    if 0 < 2 * len(strays) < len(values):
        problem = (
            f"{values[strays[0]]!r} is not a number, though most labels here are; mend or drop the "
            "row, or use --kind single_label to take all of them for names"
        )
        raise _bad(columns, column, problem, strays[0])
    return "single_label" if strays else "regression"


def collect_labels(columns: Columns, column: str, kind: TaskKind) -> tuple[str, ...]:
    """Return the label names of the train rows: integers by value, other names alphabetically.

    A data set that states its labels keeps its own order; labels without a row are left out.

    Raises:
        DataError: a value can't be a label, or there are too few or implausibly many labels.
    """
    if kind == "regression":
        if all(map(is_blank, columns.values[column])):
            raise _no_labels(columns, column)
        numbers = set(_numbers(columns, column))
        if len(numbers) < 2:
            found = f"every row has the number {numbers.pop():g}"
            problem = f"{found}; at least 2 different ones needed to learn anything"
            raise _bad(columns, column, problem)
        return ()
    rows = _names(columns, column, kind)
    if not any(rows):
        raise _no_labels(columns, column)
    counts = Counter(name for names in rows for name in names)
    _check_counts(columns, column, counts, fewest=2 if kind == "single_label" else 1)
    once = sorted(name for name, count in counts.items() if count == 1)
    if once:
        logger.warning(
            "%s, row %d, column %r: %d of %d labels occur in one row only and can't be evaluated: "
            "%s",
            columns.name,
            1 + next(number for number, names in enumerate(rows) if once[0] in names),
            column,
            len(once),
            len(counts),
            listing(once),
        )
    stated = [name.strip() for name in columns.label_names]
    if set(counts) <= set(stated):
        return tuple(name for name in stated if name in counts)
    if all(_INTEGER.fullmatch(name) for name in counts):
        return tuple(sorted(counts, key=lambda name: (int(name), name)))
    return tuple(sorted(counts))


def encode_labels(columns: Columns, column: str, kind: TaskKind, labels: Sequence[str]) -> Labels:
    """Return each row's code, value, or list of 0 and 1.

    Raises:
        DataError: a value doesn't fit the kind, or isn't one of `labels`; names the first such row
            and counts the others.
    """
    if kind == "regression":
        return _numbers(columns, column)
    codes = {label: code for code, label in enumerate(labels)}
    rows = _names(columns, column, kind)
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
        raise _bad(columns, column, problem, row)
    if kind == "single_label":
        return [codes[names[0]] for names in rows]
    return [[int(label in names) for label in labels] for names in rows]


def _bad(columns: Columns, column: str, problem: str, row: int | None = None) -> DataError:
    return DataError(problem, path=columns.path, row=row, column=column)


def _check_counts(columns: Columns, column: str, counts: Counter[str], fewest: int) -> None:
    if len(counts) < fewest:
        found = f"{len(counts)} distinct label ({listing(counts)})"
        problem = f"{found}; at least {fewest} needed to learn anything"
        raise _bad(columns, column, problem)
    never_repeated = len(counts) > 10 and max(counts.values()) == 1
    if len(counts) > _MOST_LABELS or never_repeated:
        problem = (
            f"{len(counts):,} distinct labels in {columns.num_rows:,} rows; is this the label "
            f"column? At most {_MOST_LABELS:,} labels are possible, and some must repeat. To "
            "predict numbers use --kind regression"
        )
        raise _bad(columns, column, problem)


def _names(columns: Columns, column: str, kind: TaskKind) -> list[list[str]]:
    """Return the label names of every row: exactly one for single label, any number otherwise."""
    values = columns.values[column]
    blank = [row for row, value in enumerate(values, 1) if is_blank(value)]
    if blank and kind == "single_label":
        raise _no_labels(columns, column, blank)
    rows = []
    for row, value in enumerate(values, start=1):
        parts = _parts(columns, column, row, value) if kind == "multi_label" else [value]
        try:
            rows.append(list(dict.fromkeys(_name(part) for part in parts)))
        except ValueError as error:
            raise _bad(columns, column, str(error), row) from error
    return rows


def is_blank(value: Any) -> bool:
    """Return True for a missing value, and for a text without characters."""
    return value is None or (isinstance(value, str) and not value.strip())


def _no_labels(columns: Columns, column: str, blank: Sequence[int] = ()) -> DataError:
    """Make the error for blank rows; without `blank`, for a column in which no row has a label."""
    checked = "column" if columns.noun == "file" else "split and column"
    problem = f"no row has a label here; is this the right {checked}?"
    if 0 < len(blank) < columns.num_rows:
        more = f" ({len(blank) - 1:,} more such rows follow)" if len(blank) > 1 else ""
        problem = f"no label{more}; fill it in or drop the row"
    return _bad(columns, column, problem, blank[0] if blank else 1)


def _parts(columns: Columns, column: str, row: int, value: Any) -> list[Any]:
    if columns.is_text_only:
        return value.split(SEPARATOR) if value.strip() else []
    if not isinstance(value, list):
        problem = f"{value!r} is not a list; a multi-label row holds a list, which may be empty"
        raise _bad(columns, column, problem, row)
    return value


def _name(value: Any) -> str:
    """Return a label's name; 1.0 is "1", because pandas writes integers so in columns with gaps.

    Raises:
        ValueError: the value can't be a label's name.
    """
    if value is None or value == "":
        raise ValueError("no label; fill it in or drop the row")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | dict | bytes) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(
            f"{value!r} can't be one label; use a text or a number (lists need --kind multi_label)"
        )
    name = str(value).strip()
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise ValueError(f"{name!r} has half a surrogate pair; labels must be valid Unicode")
    if not 1 <= len(name) <= _LONGEST_LABEL:
        raise ValueError(
            f"a label of {len(name)} characters; from 1 to {_LONGEST_LABEL} are allowed. Is this "
            "the label column?"
        )
    return name


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _numbers(columns: Columns, column: str) -> list[float]:
    numbers = []
    for row, value in enumerate(columns.values[column], start=1):
        number = _as_number(value)
        if number is None:
            problem = (
                f"{value!r} is not a finite number, which a regression task needs; mend or drop "
                "the row, or use --kind single_label"
            )
            raise _bad(columns, column, problem, row)
        if abs(number) > _LARGEST_NUMBER:
            allowed = f"from -{_LARGEST_NUMBER:g} to {_LARGEST_NUMBER:g}"
            problem = f"{number:g} is too large; numbers {allowed} can be learned"
            raise _bad(columns, column, problem, row)
        numbers.append(number)
    return numbers
