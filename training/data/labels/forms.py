"""Finds out how a label column is written, and which kind of task follows.

The form is decided on the train rows, and rows of other splits must have it, too. Where two forms
are likely, one is taken with a warning that shows both, or none is; `--kind` decides. Read
`training.data.labels.label_column` next, which reads the labels of a column in its form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.files.columns import Columns, Warn
from training.data.files.spelling import clean
from training.data.labels.cells import is_blank, may_be_thousands, parse_number
from training.data.labels.lists import SEPARATOR, ListForm, find_joined, find_list_form
from training.errors import DataError

if TYPE_CHECKING:
    from deltas.manifest import TaskKind


# Pairs of codes joined by a comma are recognised in so many rows, if both sides share such a part.
_MANY_PAIRS = 40
_ALIKE = 0.4


@dataclass(frozen=True)
class LabelForm:
    """States how the cells of a label column are written, and the kind of task that follows."""

    kind: TaskKind
    lists: ListForm | None = None  # None if a cell holds one name or number
    decimal: str = "."  # the mark in numbers that are written as text

    @property
    def note(self) -> str:
        """A sentence on the form, if it is no ordinary one, or ""."""
        if self.decimal != ".":
            return "numbers with a decimal comma"
        if self.lists and self.lists.width:
            last = self.lists.width - 1
            return f"vectors of 0 and 1, whose places are the labels 0 to {last}"
        if self.lists and (self.lists.is_literal or self.lists.separator):
            return self.lists.described
        return ""


def infer_form(columns: Columns, column: str, kind: TaskKind | None, warn: Warn) -> LabelForm:
    """Find out the form of a column of train rows; `kind` is the user's, if one is given.

    Lists are multi-label, numbers with fractions regression, all else single-label. 1.0 has no
    fraction: pandas writes integers so where a column has gaps. In formats without types a list is
    a text with "|", a list as Python or JSON writes it, or labels of other rows joined by a comma
    or semicolon; a number is any text that reads as one.

    Raises:
        DataError: two forms are equally likely, or a value contradicts most others.
    """
    values = {row: v for row, v in enumerate(columns.values[column], 1) if not is_blank(v)}
    if kind == "regression":
        decimal = _decimal_mark(values)
        if doubt := _thousands_doubt(columns, column, values, decimal):
            warn(doubt)
        return LabelForm(kind, decimal=decimal)
    if kind == "multi_label":
        lists = find_list_form(columns, column, values, warn) or find_joined(
            columns, column, values, warn, is_sure=True
        )
        return LabelForm(kind, lists or ListForm(SEPARATOR if columns.is_text_only else ""))
    if kind == "single_label":
        return LabelForm(kind, _find_single_lists(columns, column, values))
    if lists := find_list_form(columns, column, values, warn):
        return LabelForm("multi_label", lists)
    if numbers := _find_numbers(columns, column, values):
        if doubt := _thousands_doubt(columns, column, values, numbers.decimal):
            warn(doubt)
        return numbers
    if lists := find_joined(columns, column, values, warn, is_sure=False):
        return LabelForm("multi_label", lists)
    return LabelForm("single_label")


def _find_single_lists(columns: Columns, column: str, values: Mapping[int, Any]) -> ListForm | None:
    """Return the form of lists that hold one label each; the user says that there is one."""
    with suppress(DataError):
        lists = find_list_form(columns, column, values, warn=lambda _: None)
        if lists and all(len(lists.split(value) or ()) == 1 for value in values.values()):
            return lists
    return None


def _find_numbers(columns: Columns, column: str, values: Mapping[int, Any]) -> LabelForm | None:
    """Return the form of a column of numbers, some with fractions, or None for any other column.

    Raises:
        DataError: most values are numbers, but not all; a value is a mistake. Or commas may be
            decimal commas or something else.
    """
    decimal = _decimal_mark(values) if columns.is_text_only else "."
    numbers = {row: _number(columns, value, decimal) for row, value in values.items()}
    if not any(number is not None and not number.is_integer() for number in numbers.values()):
        return None
    strays = [row for row, number in numbers.items() if number is None]
    if decimal == "," and any(values[row].count(",") > 1 for row in strays):
        return None  # lists of codes
    if 0 < 2 * len(strays) < len(values):
        found = values[strays[0]]
        problem = (
            f"{found!r} is not a number, though most labels here are{_number_hint(found, decimal)}"
            "; mend or drop the row, or use --kind single_label to take all of them for names"
        )
        raise columns.error(column, problem, strays[0])
    if strays:
        return None
    if decimal == ",":
        _check_commas(columns, column, values)
    return LabelForm("regression", decimal=decimal)


def _number(columns: Columns, value: Any, decimal: str) -> float | None:
    """Return a value as a number; a text counts in formats without types only."""
    if columns.is_text_only or not isinstance(value, str):
        return parse_number(value, decimal)
    return None


def _number_hint(value: Any, decimal: str) -> str:
    """Return why a text that reads as a number is none here, or ""."""
    if not isinstance(value, str):
        return ""
    if parse_number(value, decimal) is not None:
        return ": it is a text (--kind regression reads such texts as numbers)"
    if parse_number(value, "," if decimal == "." else ".") is not None:
        usual = "comma" if decimal == "," else "point"
        return f": they have a decimal {usual}"
    return ""


def _decimal_mark(values: Mapping[int, Any]) -> str:
    """Return the mark with which more of the texts are numbers."""
    texts = [value for value in values.values() if isinstance(value, str)]
    as_numbers = {
        mark: sum(parse_number(text, mark) is not None for text in texts) for mark in ".,"
    }
    return max(as_numbers, key=lambda mark: as_numbers[mark])


def _check_commas(columns: Columns, column: str, values: Mapping[int, Any]) -> None:
    """Refuse commas that may be decimal commas, but mean something else as likely."""
    texts = {row: value.strip() for row, value in values.items() if "," in value}
    row, text = next(iter(texts.items()))
    alone = {clean(value) for value in values.values() if "," not in value}
    is_known = all(set(text.split(",")) <= alone for text in texts.values())
    if is_known or (not alone and _are_pairs(texts.values())):
        labels = "two labels of other rows" if is_known else "two labels"
        problem = (
            f"{text!r} may be a number with a decimal comma (--kind regression), or {labels} "
            "(--kind multi_label); say which"
        )
        raise columns.error(column, problem, row)
    if _thousands_doubt(columns, column, values, ","):
        small, large = text.replace(",", "."), text.replace(",", "")
        problem = (
            f"{text!r} may be {small} or {large}; write numbers with a decimal point and without "
            "marks between thousands"
        )
        raise columns.error(column, problem, row)


def _are_pairs(texts: Iterable[str]) -> bool:
    """Return True if the digits on both sides of commas are the same codes, and differ in each row.

    Decimals repeat a digit in a tenth of the rows.
    """
    pairs = [text.split(",") for text in texts]
    firsts, seconds = {first for first, _ in pairs}, {second for _, second in pairs}
    is_alike = len(firsts & seconds) >= _ALIKE * len(firsts | seconds)
    return is_alike and len(pairs) >= _MANY_PAIRS and all(one != other for one, other in pairs)


def _thousands_doubt(columns: Columns, column: str, values: Mapping[int, Any], decimal: str) -> str:
    """Return a sentence if all marks of texts may stand between thousands, or ""."""
    texts = {row: v.strip() for row, v in values.items() if isinstance(v, str) and decimal in v}
    if not texts or not all(map(may_be_thousands, texts.values())):
        return ""
    row, text = next(iter(texts.items()))
    small, large = float(text.replace(",", ".")), text.replace(decimal, "")
    return (
        f"{columns.where(column, row)}: {text!r} was read as {small:g}, like all numbers here with "
        f"such a mark; if {large} is meant, write it so"
    )
