"""Tells spellings apart: those that are certainly the same, and those that only look alike.

A name spelled in two ways that look the same, such as with a combining accent or with a zero-width
space, is one name: `clean` returns its one spelling. Spellings that differ visibly, such as in
letter case, stay apart; `look_alikes` finds them, so that a warning can show both.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

# Control characters, zero-width space, word joiner, soft hyphen, byte order mark, and marks of
# writing direction.
_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f"
    "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
# These join letters and emoji, so that they mean something inside a text.
_JOINERS = "\u200c\u200d"
_BLANK = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # of other kinds and widths
_INNER_GAP = re.compile(r"(?<=\w)[\s_-]+(?=\w)")
# Signs that look like others: Cyrillic and Greek letters, curly quotes, dashes.
_SAME_LOOK = str.maketrans(
    "АВЕКМНОРСТУХаеіјорсухѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο’‘‚“”„‐‑‒–—−",  # noqa: RUF001 - that is the point
    "ABEKMHOPCTYXaeijopcyxsABEZHIKMNOPTYXo'''\"\"\"------",
)
_VARIANTS = re.compile("[\ufe00-\ufe0f]")  # how an emoji is drawn
_AROUND = " .,;:!?'\"`()[]"
_SAME_WORD: dict[str, object] = {"true": 1.0, "false": 0.0, "y": "yes", "n": "no"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d{1,3})?", re.ASCII)


def clean(text: str) -> str:
    """Return the one spelling of all texts that look exactly the same.

    It is in normal form C, without invisible and control characters, with plain blanks, and
    without blanks around it.
    """
    if text.isascii() and text.isprintable():
        return text.strip()
    visible = _BLANK.sub(" ", _INVISIBLE.sub("", unicodedata.normalize("NFC", text)))
    return visible.strip().strip(_JOINERS).strip()


def clean_name(text: str) -> str:
    """Return the one spelling of a column's name; line breaks and wide gaps in it are blanks."""
    return " ".join(clean(text).split())


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that look alike or say the same.

    They differ in letter case ("A" and "a"), as numbers and truth values ("1", "1.0" and "true"),
    in blanks ("a b" and "a_b"), in punctuation around ("a" and "a."), or as HTML ("&" and "&amp;").
    """
    groups: dict[object, list[str]] = defaultdict(list)
    for name in names:
        groups[_look(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _look(name: str) -> object:
    """Return a value that names which look alike have in common."""
    plain = unicodedata.normalize("NFKC", html.unescape(name)).translate(_SAME_LOOK)
    seen = "".join(char for char in plain.casefold() if unicodedata.category(char) != "Cf")
    seen = _VARIANTS.sub("", seen)
    if _NUMBER.fullmatch(seen):
        return Decimal(seen)
    spoken = _INNER_GAP.sub(" ", seen.strip(_AROUND) or seen)
    return _SAME_WORD.get(spoken, spoken)
