"""Tells spellings apart: those that are certainly the same, and those that only look alike.

A name spelled in two ways that look the same, such as with a combining accent or with a zero-width
space, is one name: `clean` returns its one spelling. Spellings that differ visibly, such as in
letter case, stay apart; `look_alikes` finds them, so that a warning can show both.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

# Zero-width space, word joiner, soft hyphen, byte order mark, and marks of writing direction.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# These join letters and emoji, so that they mean something inside a text.
_JOINERS = "\u200c\u200d"
_BLANK = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # of other kinds and widths
_INNER_GAP = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
# Signs that look like others: Cyrillic and Greek letters, curly quotes, dashes.
_SAME_LOOK = str.maketrans(
    "АВЕКМНОРСТУХаеіјорсухѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο’‘‚“”„‐‑‒–—−",  # noqa: RUF001 - that is the point
    "ABEKMHOPCTYXaeijopcyxsABEZHIKMNOPTYXo'''\"\"\"------",
)
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?", re.ASCII)


def clean(text: str) -> str:
    """Return the one spelling of all texts that look exactly the same.

    It is in normal form C, without invisible characters, with plain blanks, and without blanks
    around it.
    """
    if text.isascii():
        return text.strip()
    visible = _BLANK.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", text)))
    return visible.strip().strip(_JOINERS).strip()


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that look alike: letter case, "1" and "1.0", "a b" and "a_b"."""
    groups: dict[object, list[str]] = defaultdict(list)
    for name in names:
        groups[_look(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _look(name: str) -> object:
    """Return a value that names which look alike have in common."""
    folded = unicodedata.normalize("NFKC", name).translate(_SAME_LOOK).casefold()
    if _NUMBER.fullmatch(folded):
        return float(folded)
    seen = "".join(char for char in folded if unicodedata.category(char) != "Cf")
    return _INNER_GAP.sub(" ", seen)
