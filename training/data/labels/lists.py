"""Finds out how several labels of a row are written in one cell, and splits such cells.

A cell may be a list, a list that was written as text (`['a', 'b']`), names joined by a separator,
or a vector of 0 and 1 with a place for each label. `training.data.labels.forms` asks for the form
of a column before it looks for numbers and names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from training.data.files.columns import Columns, Warn
from training.data.files.spelling import clean
from training.data.labels.cells import is_blank, parse_list, parse_number

SEPARATOR = "|"
_USUAL_SEPARATORS = (";", ",", "\n")
# These join labels as well, but are more often a part of a name; so is any other sign.
_RARE_SEPARATORS = ("/", "+", "&", " ")
# So many of the cells with a separator must consist of labels of other rows.
_MOST = 0.8
_VECTOR = re.compile(r"[01]([,; \t])[01](\1[01])*")
_DICT = re.compile(r"\{.*:.*\}", re.DOTALL)
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class ListForm:
    """States how several labels are written in a cell: as a list, unless a field says otherwise."""

    separator: str = ""  # between labels in a text
    is_literal: bool = False  # lists are written as text
    width: int = 0  # of vectors of 0 and 1; 0 for lists of labels

    def split(self, value: Any) -> list[Any] | None:
        """Return the labels of a cell, or None if the cell is not written in this form."""
        if is_blank(value):
            return []
        if isinstance(value, str):
            found = parse_list(value) if self.is_literal else None
            if found is None and self.separator:
                found = [part for part in value.split(self.separator) if clean(part)]
            if found is None:
                return None
            value = found
        if not isinstance(value, list):
            return None
        if not self.width:
            return value
        bits = [bit_of(item) for item in value]
        if len(bits) != self.width or None in bits:
            return None
        return [position for position, bit in enumerate(bits) if bit]

    @property
    def described(self) -> str:
        """The content of a cell, for messages."""
        if self.width:
            return f"a vector of {self.width} zeros and ones"
        if self.is_literal:
            return "a list like ['a', 'b']"
        return f"labels joined by {self.separator!r}" if self.separator else "a list"


def find_list_form(
    columns: Columns, column: str, values: Mapping[int, Any], warn: Warn
) -> ListForm | None:
    """Return the form of a column with several labels a row, or None if it has one label a row.

    Args:
        columns: the train rows.
        column: their label column.
        values: its values that are not blank, by row.
        warn: takes a sentence for each doubt.

    Raises:
        DataError: vectors of 0 and 1 have different widths, or only some cells are lists.
    """
    texts = {row: value for row, value in values.items() if isinstance(value, str)}
    if any(isinstance(value, list) for value in values.values()):
        form = ListForm()
    elif len(texts) < len(values) or column in columns.class_names:
        return None
    elif vector := _vector_separator(texts):
        form = ListForm(vector)
        _doubt_comma(columns, column, texts, warn)
    elif _are_literal(columns, column, texts):
        form = ListForm(is_literal=True)
    elif columns.is_text_only and any(SEPARATOR in text for text in texts.values()):
        form = ListForm(SEPARATOR)
        _doubt_bars(columns, column, texts, warn)
    else:
        return None
    lists = {row: form.split(value) for row, value in values.items()}
    found = {row: items for row, items in lists.items() if items is not None}
    return replace(form, width=_vector_width(columns, column, found))


def find_joined(
    columns: Columns, column: str, values: Mapping[int, Any], warn: Warn, *, is_sure: bool
) -> ListForm | None:
    """Return the form of a column whose texts join labels of other rows, or None.

    A name with a comma stays a name if its parts are no labels of their own. `is_sure` means that
    the user says that rows have several labels; the other arguments are those of `find_list_form`.
    """
    texts = {row: value for row, value in values.items() if isinstance(value, str)}
    if len(texts) < len(values) or column in columns.class_names:
        return None
    for separator in _separators(set(texts.values())):
        joined = {row: text for row, text in texts.items() if _joins(text, separator)}
        if not joined:
            continue
        alone = _alone(texts.values(), separator)
        is_known, is_repeated = _known_shares(joined.values(), separator, alone)
        known = (row for row, text in joined.items() if _parts(text, separator) <= alone)
        row = next(known, next(iter(joined)))
        where = f"{columns.where(column, row)}: {joined[row]!r}"
        is_usual = separator in _USUAL_SEPARATORS
        is_doubtful = is_usual and (is_known > 0 or is_repeated == 1)
        may_repeat = is_usual or separator in _RARE_SEPARATORS
        if is_sure and (is_doubtful or is_known >= _MOST or (may_repeat and is_repeated >= _MOST)):
            return ListForm(separator)
        if is_usual and is_known >= _MOST:
            warn(
                f"{where} was read as several labels, since its parts are labels of other rows; "
                "--kind single_label takes such cells for names"
            )
            return ListForm(separator)
        if is_doubtful or is_known >= _MOST:
            warn(
                f"{where} was read as one name, though its parts occur in other labels; "
                "--kind multi_label takes such cells for several labels"
            )
            return None
    return None


def _separators(texts: Iterable[str]) -> list[str]:
    """Return the signs in texts that may join labels: usual separators first, then rare ones."""
    usual = (*_USUAL_SEPARATORS, *_RARE_SEPARATORS)
    found = {sign for text in texts for sign in text.strip() if not sign.isalnum()}
    return [*filter(found.__contains__, usual), *sorted(found.difference(usual))]


def _joins(text: str, separator: str) -> bool:
    """Return True if a separator joins several parts of a text, which is no number or mapping."""
    if separator not in text or parse_number(text) is not None or _DICT.fullmatch(text.strip()):
        return False
    return sum(bool(clean(part)) for part in text.split(separator)) > 1


def _known_shares(joined: Iterable[str], separator: str, alone: set[str]) -> tuple[float, float]:
    """Return two shares of the joined cells: all parts known, and all parts repeated.

    A part is known if it is the whole label of a row (`alone`), and repeated if it is known or
    occurs in several different cells.
    """
    parts = {text: _parts(text, separator) for text in joined}
    counts = Counter(part for found in parts.values() for part in found)
    repeated = alone | {part for part, count in counts.items() if count > 1}
    cells = list(joined)
    shares = [
        sum(parts[text] <= known for text in cells) / len(cells) for known in (alone, repeated)
    ]
    return shares[0], shares[1]


def _alone(texts: Iterable[str], separator: str) -> set[str]:
    """Return the names that are the whole label of a row."""
    single = (text.strip().strip(separator) for text in texts if not _joins(text, separator))
    return set(map(clean, single))  # a separator at the end joins nothing


def _parts(text: str, separator: str) -> set[str]:
    """Return the names that a separator joins."""
    return set(filter(None, map(clean, text.split(separator))))


def _vector_separator(texts: Mapping[int, str]) -> str:
    """Return the separator in texts like "0,1,1", if all are alike, else ""."""
    found = {match[1] if (match := _VECTOR.fullmatch(t.strip())) else "" for t in texts.values()}
    return found.pop() if len(found) == 1 else ""


def _doubt_comma(columns: Columns, column: str, texts: Mapping[int, str], warn: Warn) -> None:
    """Warn about vectors of two places with a comma, which may be a decimal comma."""
    row, text = next(iter(texts.items()))
    text = text.strip()
    if len(text) == 3 and text[1] == ",":  # all texts have the same separator
        warn(
            f"{columns.where(column, row)}: {text!r} was read as a vector of 0 and 1; if it is a "
            f"number with a decimal comma, {text.replace(',', '.')}, use --kind regression"
        )


def _are_literal(columns: Columns, column: str, texts: Mapping[int, str]) -> bool:
    """Return True if texts are lists; a bracket alone, as in "[other]", makes no list.

    Raises:
        DataError: some texts are lists in quotes and brackets, but others are not.
    """
    lists = {row: items for row, text in texts.items() if (items := parse_list(text)) is not None}
    certain = [row for row, items in lists.items() if _is_surely_list(texts[row].strip(), items)]
    if not certain:
        return False
    strays = [row for row in texts if row not in lists]
    names = {str(item) for items in lists.values() for item in items}
    if all(clean(texts[row]) in names for row in strays):
        return True
    has_quotes = any(quote in texts[row] for row in certain for quote in "'\"")
    if 2 * len(strays) > len(texts) and not has_quotes:
        return False
    problem = (
        f"{texts[strays[0]]!r:.100} is not a list, though labels here are lists that were written "
        f"as text, such as {texts[certain[0]]!r:.100} in row {columns.number(certain[0]):,}; mend "
        "or drop the row, or use --kind single_label to take all of them for names"
    )
    raise columns.error(column, problem, strays[0])


def _is_surely_list(text: str, items: list[Any]) -> bool:
    """Return True for a text that can be read as a list, and hardly as a name."""
    if text[0] in "'\"":  # no brackets
        return len(items) > 1
    return bool(re.search(r"""['",]|\s""", text[1:-1].strip()))


def _doubt_bars(columns: Columns, column: str, texts: Mapping[int, str], warn: Warn) -> None:
    """Warn if names with a bar in them may be whole names."""
    joined = {row: text for row, text in texts.items() if SEPARATOR in text}
    alone = _alone(texts.values(), SEPARATOR)
    if _known_shares(joined.values(), SEPARATOR, alone)[1] == 0:
        row, text = next(iter(joined.items()))
        warn(
            f"{columns.where(column, row)}: {text!r} was read as several labels "
            f"joined by {SEPARATOR!r}, none of which occurs elsewhere; --kind single_label takes "
            "such cells for names"
        )


def _vector_width(columns: Columns, column: str, lists: Mapping[int, list[Any]]) -> int:
    """Return the width of vectors of 0 and 1, or 0 if the lists hold names or codes.

    A list of codes names none twice, so that a vector is recognised by its repeated values; pairs
    of 0 and 1 would all name the same two codes.

    Raises:
        DataError: vectors have different widths, or hold numbers with fractions.
    """
    for row, items in lists.items():
        if any(isinstance(item, float) and not item.is_integer() for item in items):
            problem = (
                f"{items!r:.100} has numbers with fractions; labels are names, codes or vectors of "
                "0 and 1, no probabilities"
            )
            raise columns.error(column, problem, row)
    all_items = (item for items in lists.values() for item in items)
    if any(bit_of(item) is None for item in all_items):
        _refuse_other_vectors(columns, column, lists)
        return 0
    widths = defaultdict(list)
    for row, items in lists.items():
        widths[len(items)].append(row)
    repeats = any(len(set(map(bit_of, items))) < len(items) for items in lists.values())
    if len(widths) == 1:
        (width,) = widths
        return width if repeats or width == 2 else 0
    if not repeats:
        return 0
    usual = max(widths, key=lambda width: len(widths[width]))
    width, rows = next((width, rows) for width, rows in widths.items() if width != usual)
    problem = f"a vector with {width} places, while most rows have {usual}; all need the same width"
    raise columns.error(column, problem, rows[0])


def _refuse_other_vectors(columns: Columns, column: str, lists: Mapping[int, list[Any]]) -> None:
    """Refuse lists of one width that repeat values, unlike lists of labels.

    Raises:
        DataError: the lists have one value for each place or annotator.
    """
    repeating = [row for row, items in lists.items() if len(set(map(repr, items))) < len(items)]
    if not repeating or len({len(items) for items in lists.values()}) > 1:
        return
    row, strange = next((r, v) for r, items in lists.items() for v in items if bit_of(v) is None)
    items = lists[repeating[0]]
    problem = (
        f"{strange!r:.100} is neither 0 nor 1; all lists here have {len(items)} values and some "
        f"repeat one (row {columns.number(repeating[0]):,}: {items!r:.100}), so they seem to be "
        "vectors with a place for each label. Write 0 and 1 there, or the names of a row's "
        "labels, each once"
    )
    raise columns.error(column, problem, row)


def bit_of(value: Any) -> int | None:
    """Return 0 or 1 for a value that means one of them."""
    if isinstance(value, bool | int | float):
        return int(value) if value in (0, 1) else None
    return _BITS.get(value.strip().lower()) if isinstance(value, str) else None
