"""Leaves out the rows of a file or split that have no text.

There is nothing to read in a blank text. A number, or half of a surrogate pair, is an error, since
the column is likely to be the wrong one. Called by `training.data.custom` for rows to train on, and
by `audit.rows` for rows to audit. Tested by tests/unit/training/data/test_custom_files.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from deltas.backbone.tokenizer import has_text
from training.data.files.columns import Columns, Warn
from training.data.labels.cells import is_blank
from training.errors import DataError, counted


def with_texts(columns: Columns, names: Sequence[str], warn: Warn) -> Columns:
    """Return the rows that have all their texts; the others are left out, with a warning.

    `names` are the columns with texts.

    Raises:
        DataError: a value is no text, or no row has all its texts.
    """
    blank: dict[int, str] = {}  # the column in which a row has no text
    for field in names:
        values = columns.values[field]
        missing = [row for row, value in enumerate(values, 1) if _is_missing(value)]
        bad = [row for row, value in enumerate(values, 1) if not _is_text(value)]
        if bad and (len(bad) == len(values) or set(bad) - set(missing)):
            others = sorted(set(bad) - set(missing))
            bad = bad if len(bad) == len(values) else others
            problem = _text_problem(values[bad[0] - 1], bad, len(values))
            raise columns.error(field, problem, bad[0])
        blank.update({row: field for row in missing if row not in blank})
    if len(blank) == columns.num_rows:
        problem = "every row lacks one of its texts; are these the right columns?"
        raise DataError(problem, path=columns.path)
    if not blank:
        return columns
    first, rows = min(blank), counted(len(blank), "row")
    warn(
        f"{columns.name}: {rows} without a text left out (the first is row "
        f"{columns.number(first):,}, column {blank[first]!r})"
    )
    return columns.take([row for row in range(1, columns.num_rows + 1) if row not in blank])


def _is_missing(value: object) -> bool:
    """Return True for no value, and for a text of which the tokenizer makes no token."""
    return not has_text(value) if isinstance(value, str) else is_blank(value)


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or _is_missing(value):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which tokenizers refuse
        return False
    return True


def _text_problem(value: object, bad: list[int], num_rows: int) -> str:
    if len(bad) == num_rows:
        return "no row has a text here; is this the right column?"
    found = f"{value!r:.100} is not a text"
    more = f" ({len(bad) - 1:,} more such rows follow)" if len(bad) > 1 else ""
    return f"{found}{more}; write it as a text or drop the row"
