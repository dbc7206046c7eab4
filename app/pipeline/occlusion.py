"""Splits texts into words, leaves out each word in turn, and compares what strategies lost by it.

Leaving out a part and looking at the output is occlusion (Zeiler and Fergus 2014, arXiv:1311.2901).
No model is known here; `app.http.routes.explain` asks the deltas. Tested by
tests/unit/app/pipeline/test_occlusion.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

# Scripts without spaces between words: each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(
    rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:[-'\u2019.](?:(?![{_UNSPACED}])\w)+)*|[^\w\s]+"
)
_FEWEST_WORDS = 3  # whose order says something
Losses = Sequence[float | None]


@dataclass(frozen=True)
class WordSpan:
    """A word of a row: the position of its text, and its characters in it."""

    text: int
    start: int
    end: int


def split_words(text: str) -> list[tuple[int, int]]:
    """Return begin and end of each word; punctuation is no word, but a symbol such as 🙂 is."""
    return [found.span() for found in _WORD.finditer(text) if not _is_punctuation(found[0])]


def _is_punctuation(part: str) -> bool:
    return all(unicodedata.category(char).startswith("P") for char in part)


def row_words(texts: Sequence[str]) -> list[WordSpan]:
    """Return the words of all texts of a row, in their order."""
    return [
        WordSpan(position, start, end)
        for position, text in enumerate(texts)
        for start, end in split_words(text)
    ]


def num_rows_without_words(texts: Sequence[str], words: Sequence[WordSpan]) -> int:
    """Return the number of rows that `rows_without_words` makes, each as long as all texts."""
    counts = Counter(word.text for word in words)
    return 1 + sum(count for count in counts.values() if count > 1)


def rows_without_words(
    texts: Sequence[str], words: Sequence[WordSpan]
) -> tuple[list[tuple[str, ...]], list[int | None]]:
    """Return the row, followed by the row without each word, and the place of each word's row.

    The place of the only word of a text is None: without it there would be no text to read.
    """
    counts = Counter(word.text for word in words)
    rows = [tuple(texts)]
    places: list[int | None] = []
    for word in words:
        if counts[word.text] == 1:
            places.append(None)
            continue
        text = texts[word.text]
        left = text[: word.start] + text[word.end :].lstrip()
        places.append(len(rows))
        rows.append((*texts[: word.text], left, *texts[word.text + 1 :]))
    return rows, places


def agreement(losses: Sequence[Losses]) -> float | None:
    """Return how far strategies agree on the order of the words: 1 if fully, 0 if not at all.

    It is the mean of Spearman's rank correlation over all pairs of strategies. None means that
    there is nothing to compare: one strategy, few words, or losses that are all the same.
    """
    known = [[loss for loss in found if loss is not None] for found in losses]
    found = [rank_correlation(one, other) for one, other in combinations(known, 2)]
    measured = [value for value in found if value is not None]
    return fmean(measured) if measured else None


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None for few values, or if all values are the same."""
    if len(one) < _FEWEST_WORDS:
        return None
    first, second = _ranks(one), _ranks(other)
    mean = (len(one) + 1) / 2
    spread = sum((rank - mean) ** 2 for rank in first) * sum((rank - mean) ** 2 for rank in second)
    if spread == 0:
        return None
    shared = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    return float(max(-1.0, min(1.0, shared / spread**0.5)))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 1; equal values have the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for position in order[start:end]:
            ranks[position] = (start + 1 + end) / 2
        start = end
    return ranks
