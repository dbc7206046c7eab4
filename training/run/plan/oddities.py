"""Finds what looks odd in the rows of a run, and says it in one sentence each, with the remedy.

Nothing is refused here: an oddity may be right. What can't be used at all is an error of
`training.data`. The numbers come from `training.run.plan.facts`; texts and labels are looked at by
`training.run.plan.texts` and here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from training.data.rows import Rows
from training.errors import listing
from training.run.plan.facts import SELECTION, TRAIN, RunFacts, label_counts, label_text
from training.run.plan.texts import text_oddities
from training.run.plan.wording import percent

_RARE_ROWS = 8  # a label with fewer train rows is hardly learnt
_TYPO_SHARE = 0.05  # a misspelled label is at most this frequent, beside the right one
_TYPO_LETTERS = 5  # shorter labels differ by a letter for good reasons
_IMBALANCE = 50
_ROWS_A_LABEL = 4  # fewer rows a label on average look like a column of ids
_SHARED = 0.01
_CONTRADICTING = 0.005
_REPEATED = 0.1
_CUT = 0.05
_SHIFT = 0.2  # of the label shares between train and validation rows
_FEW_ROWS = 200
_FEW_WORDS_ROWS = 20
_MANY_INTEGERS = 5
_FEW_NUMBERS = 12  # of a regression: they may name classes
_OUTLIER = 8.0  # standard deviations
_MAX_TOKENS = 512
# English needs about 1.3 tokens a word, with names and slang 1.6; other languages over 2.
_TOKENS_A_WORD = 2.2


def find_oddities(facts: RunFacts, splits: Mapping[str, Rows]) -> list[str]:
    """Return a sentence for each oddity of a run's rows; `splits` are those of the facts."""
    checks = (
        _odd_labels(facts),
        _odd_kind(facts, splits[TRAIN]),
        _odd_numbers(facts, splits[TRAIN]),
        _odd_repeats(facts),
        text_oddities(facts.task, splits[TRAIN], facts.labels),
        _odd_tokens(facts),
        _odd_validation(facts, splits),
        _odd_order(facts, splits[TRAIN]),
    )
    return [sentence for found in checks for sentence in found]


def _odd_labels(facts: RunFacts) -> Iterator[str]:
    """Yield ids taken for labels, rare and missing labels, imbalance, misspelled labels."""
    counts, rows = facts.labels, facts.rows[TRAIN] + facts.rows[SELECTION]
    if not counts:
        return
    if len(counts) > 10 and rows < _ROWS_A_LABEL * len(counts):
        yield (
            f"{len(counts):,} labels for {rows:,} rows look like ids, dates or free text; name "
            "the column with the classes (--label-column), or add rows"
        )
    rare = [label for label, count in counts.items() if count < _RARE_ROWS]
    if rare and rows >= _ROWS_A_LABEL * len(counts):
        fewest = min(counts.values())
        have = "has" if len(rare) == 1 else "have"
        yield (
            f"{len(rare)} of {len(counts)} labels {have} fewer than {_RARE_ROWS} train rows (the "
            f"fewest: {fewest}) and will hardly be answered: {_quoted(rare)}; add rows, or merge "
            "such labels"
        )
    most, fewest = max(counts.values()), max(1, min(counts.values()))
    if facts.task.kind == "single_label" and most > _IMBALANCE * fewest:
        frequent, *_, rarest = counts
        yield (
            f"label {frequent!r} has {most:,} train rows and {rarest!r} has {fewest:,}, "
            f"{most / fewest:,.0f} times fewer; --class-weights balanced makes rare labels count "
            "as much as frequent ones"
        )
    yield from _misspelled(counts)


def _misspelled(counts: Mapping[str, int]) -> Iterator[str]:
    for label, count in counts.items():
        letters = re.sub(r"[\W\d_]", "", label)
        if len(letters) < _TYPO_LETTERS or len(letters) < len(label) - 1:
            continue
        others = [
            other
            for other, rows in counts.items()
            if count <= _TYPO_SHARE * rows and _is_typo(label.casefold(), other.casefold())
        ]
        if others:
            yield (
                f"label {label!r} ({count} rows) looks like a misspelling of {others[0]!r} "
                f"({counts[others[0]]:,} rows); mend it, or they stay two labels"
            )


def _is_typo(one: str, other: str) -> bool:
    """Return True if two names differ by one letter: more, fewer, another, or two swapped."""
    if one == other or abs(len(one) - len(other)) > 1:
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if start is None:
        return True
    tail, rest = one[start:], other[start:]
    swapped = tail[1:2] + tail[:1] + tail[2:]
    return rest in (swapped, tail[1:]) or tail == rest[1:] or tail[1:] == rest[1:]


def _odd_kind(facts: RunFacts, train: Rows) -> Iterator[str]:
    """Yield second readings of the labels: numbers that were read as names, and so on."""
    task, counts = facts.task, facts.labels
    integers = [label for label in counts if re.fullmatch(r"-?\d{1,9}", label)]
    if task.kind == "single_label" and len(integers) == len(counts) >= _MANY_INTEGERS:
        low, high = min(map(int, integers)), max(map(int, integers))
        yield (
            f"the labels are {len(counts)} integers from {low} to {high}, read as names without "
            "an order; if they are amounts or grades, --kind regression predicts a number"
        )
    if task.kind == "multi_label" and len(train):
        sizes = [sum(label) for label in train.labels if isinstance(label, list)]
        if max(sizes) == min(sizes) == 1:
            yield (
                "every train row has exactly one label, so the labels exclude each other; --kind "
                "single_label then gives better answers"
            )
        always = [label for label, count in counts.items() if count == len(train)]
        if always and len(counts) > 1:
            yield f"every train row has {_quoted(always)}, so nothing can be learnt about it"
        without = sizes.count(0) / len(sizes)
        if without > 0.5:
            yield (
                f"{percent(without)} of the train rows have no label at all; if that means that "
                "they are not labelled yet, drop them"
            )


def _odd_numbers(facts: RunFacts, train: Rows) -> Iterator[str]:
    """Yield numbers of a regression that are no amounts, and ones far from all others."""
    if facts.task.kind != "regression" or not len(train):
        return
    values = np.asarray(train.labels, dtype=np.float64)
    distinct = np.unique(values)
    if len(distinct) == 2:
        yield (
            f"only two numbers occur, {distinct[0]:g} and {distinct[1]:g}; if they stand for two "
            "classes, use --kind single_label"
        )
        return
    is_few = len(distinct) <= _FEW_NUMBERS and len(values) >= _ROWS_A_LABEL * len(distinct)
    if is_few and (distinct % 1).any():
        shown = ", ".join(f"{number:g}" for number in distinct)
        yield (
            f"only {len(distinct)} different numbers occur: {shown}; if they name classes, such as "
            "versions or sections, use --kind single_label"
        )
    middle = float(np.median(values))
    spread = float(np.median(np.abs(values - middle))) * 1.4826 or float(values.std())
    away = np.abs(values - middle)
    worst = int(away.argmax())
    if spread and away[worst] > _OUTLIER * max(spread, float(values.std()) / 3):
        yield (
            f"row {train.number(worst):,} has the number {values[worst]:g}, far from the others "
            f"(half of them are within {spread / 1.4826:.3g} of {middle:g}); if it stands for a "
            "missing value, drop such rows"
        )


def _odd_repeats(facts: RunFacts) -> Iterator[str]:
    repeats, learnt = facts.repeats, facts.rows[TRAIN] + facts.rows[SELECTION]
    for split, count in repeats.shared.items():
        if split != SELECTION and count >= _SHARED * facts.rows[split] and count:
            share = count / facts.rows[split]
            yield (
                f"{percent(share)} of the {split} rows ({count:,} of {facts.rows[split]:,}) have "
                "a text that is also trained on, so their score measures memory; drop them from "
                "one side"
            )
    if repeats.example and repeats.contradicting >= _CONTRADICTING * learnt:
        rows, labels = repeats.example.rows, repeats.example.labels
        noun = "number" if facts.task.kind == "regression" else "label"
        advice = "mend them, or drop all rows of such a text"
        if facts.task.kind == "single_label":
            advice += "; if both are right, join them in one row and use --kind multi_label"
        yield (
            f"{repeats.contradicting:,} rows have a text that occurs with another {noun}, too "
            f"(rows {rows[0]:,} and {rows[1]:,}: {labels[0]!r} and {labels[1]!r}); {advice}"
        )
    if repeats.repeated > _REPEATED * learnt:
        yield (
            f"{percent(repeats.repeated / learnt)} of the rows to learn from repeat the text of "
            "an earlier one; repeated rows count more than others, so drop them unless that is "
            "wanted"
        )
    for split, count in facts.blank.items():
        if count:
            yield f"{count:,} {split} rows have an empty text; fill it in or drop the row"


def _odd_tokens(facts: RunFacts) -> Iterator[str]:
    tokens = facts.tokens
    cut = tokens.cut.get(TRAIN, 0.0)
    if cut > _CUT:
        advice = "--max-length reads more of them"
        if tokens.limit >= _MAX_TOKENS:
            advice = "put the part that decides at the front, or split the texts"
        yield (
            f"{percent(cut)} of the train rows are longer than {tokens.limit} tokens, and their "
            f"ends are not read; {advice}"
        )
    if tokens.per_word > _TOKENS_A_WORD and facts.rows[TRAIN] >= _FEW_WORDS_ROWS:
        yield (
            f"the texts need {tokens.per_word:.1f} tokens a word, where a vocabulary that knows "
            "the words needs about 1.3; for another language than the backbone's, give one of "
            "that language with --backbone"
        )


def _odd_validation(facts: RunFacts, splits: Mapping[str, Rows]) -> Iterator[str]:
    """Yield validation rows that are too few, or labelled unlike the train rows."""
    for split, rows in splits.items():
        if split in (TRAIN, SELECTION) or not len(rows):
            continue
        if len(rows) < _FEW_ROWS and facts.task.kind == "single_label":
            margin = 1.96 * math.sqrt(0.25 / len(rows))
            yield (
                f"{len(rows)} {split} rows are few: an accuracy measured on them is uncertain by "
                f"up to {100 * margin:.0f} percentage points either way; report on more rows if "
                "you have them"
            )
        if facts.task.kind == "regression":
            yield from _odd_range(split, splits[TRAIN], rows)
        # Of many labels a few rows have shares by chance.
        if facts.task.kind != "single_label" or len(rows) < _ROWS_A_LABEL * len(facts.labels):
            continue
        counts = label_counts(facts.task, rows)
        shares = {
            label: counts[label] / len(rows) - count / facts.rows[TRAIN]
            for label, count in facts.labels.items()
        }
        differing = max(shares, key=lambda label: abs(shares[label]))
        if sum(map(abs, shares.values())) / 2 > _SHIFT and len(rows) >= 50:
            train = facts.labels[differing] / facts.rows[TRAIN]
            yield (
                f"label {differing!r} has {percent(train)} of the train rows and "
                f"{percent(counts[differing] / len(rows))} of the {split} rows; scores on rows "
                "drawn otherwise say little about each other, so draw both from the same source"
            )


def _odd_range(split: str, train: Rows, rows: Rows) -> Iterator[str]:
    """Yield numbers of a validation split that lie outside of those of the train rows."""
    if not len(train):
        return
    low, high = _range(train)
    least, most = _range(rows)
    middle = float(np.median(np.asarray(rows.labels, dtype=np.float64)))
    if not low <= middle <= high:
        yield (
            f"the numbers of the {split} rows are from {least:g} to {most:g}, half of them outside "
            f"of those of the train rows, {low:g} to {high:g}; write both on the same scale"
        )


def _range(rows: Rows) -> tuple[float, float]:
    values = np.asarray(rows.labels, dtype=np.float64)
    return float(values.min()), float(values.max())


def _odd_order(facts: RunFacts, train: Rows) -> Iterator[str]:
    """Yield labels that come in blocks, if the validation rows lack some of the labels."""
    if facts.task.kind != "single_label" or len(train) < _FEW_ROWS:
        return
    changes = sum(one != other for one, other in pairwise(train.labels))
    if changes < min(2 * len(facts.labels), len(train) / _ROWS_A_LABEL):
        first = label_text(facts.task, train.labels[0])
        yield (
            f"the train rows are sorted by label ({first!r} first); that does no harm here, since "
            "rows are shuffled and held out by label, but a file that was cut in two by position "
            "would lack labels"
        )


def _quoted(names: list[str]) -> str:
    return listing(map(repr, names))
