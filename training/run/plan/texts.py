"""Finds texts that look odd: of the wrong column, wrongly decoded, or in another language.

Called by `training.run.plan.oddities`. Checks that read every character look at some rows, spread
evenly; the others look at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from training.data.rows import Rows
from training.data.tasks import Task
from training.errors import counted, listing
from training.run.plan.facts import sampled
from training.run.plan.wording import percent, shortened

_MOST = 0.9  # of the rows, for claims about a column
_HALF = 0.5
_NAMED = 0.8  # of the rows name their own label
_HTML_SHARE = 0.05
_FEWEST_ROWS = 20  # before shares mean anything
_NUMBER = re.compile(r"[+-]?[\d.,]*\d[\d.,]*(e[+-]?\d+)?\s*%?", re.IGNORECASE)
_ADDRESS = re.compile(r"(https?://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.]+|[0-9a-f-]{16,}", re.IGNORECASE)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}\S*)?")
# As Python writes them: b'...', and lists of tokens.
_PYTHON = re.compile(r"""b'.*'|b".*"|\[\s*(['"]).*\1\s*,?\s*\]""", re.DOTALL)
_FORMS = {
    "numbers": _NUMBER,
    "dates": _DATE,
    "links or ids": _ADDRESS,
    "lists or bytes of Python": _PYTHON,
}
_MISSING = re.compile(r"nan|<?na>?|#?n/a|none|null|nil|nat|\\n|#[a-z0/]+[!?]", re.IGNORECASE)
_HTML = re.compile(
    r"</?(a|b|br|div|em|h[1-6]|i|img|li|ol|p|span|strong|table|td|tr|ul)(\s[^<>]*)?/?>"
    r"|&(amp|gt|lt|nbsp|quot|#\d+);",
    re.IGNORECASE,
)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]{2,}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_REPLACED = "\ufffd"


def text_oddities(task: Task, train: Rows, labels: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each oddity of the train rows' texts; `labels` counts their labels."""
    if not len(train):
        return
    for number, field in enumerate(task.text_fields):
        column = [texts[number] for texts in train.texts]
        yield from _odd_column(field, column, len(labels))
    if len(task.text_fields) == 2:
        equal = sum(first == second for first, second in train.texts) / len(train)
        if equal > _HALF and len(train) >= _FEWEST_ROWS:
            first, second = task.text_fields
            yield (
                f"{percent(equal)} of the train rows have the same text in {first!r} and "
                f"{second!r}; name two different columns, or only one"
            )
    yield from _named_labels(task, train)


def _odd_column(field: str, column: Sequence[str], num_labels: int) -> Iterator[str]:
    """Yield the oddities of one text column."""
    if len(column) < _FEWEST_ROWS:
        yield from _decoding(field, column)
        return
    counts = Counter(column)
    (frequent, rows), *_ = counts.most_common(1)
    shown = repr(shortened(frequent))
    if len(counts) == 1:
        yield (
            f"every train row has the text {shown} in {field!r}, which tells nothing; name another "
            "text column"
        )
        return
    if rows > _HALF * len(column):
        yield (
            f"{percent(rows / len(column))} of the train rows have the text {shown} in "
            f"{field!r}; if it stands for a missing text, drop those rows"
        )
    if len(counts) < num_labels:
        yield (
            f"{field!r} has {len(counts):,} different texts and the labels are {num_labels:,}; "
            "perhaps text column and label column are swapped"
        )
    missing = {text: count for text, count in counts.items() if _MISSING.fullmatch(text.strip())}
    if missing and rows <= _HALF * len(column):
        yield (
            f"{counted(sum(missing.values()), 'text')} in {field!r} may stand for a missing text: "
            f"{listing(map(repr, missing))}; drop such rows unless the texts are meant"
        )
    some = [column[position].strip() for position in sampled(len(column))]
    for form, pattern in _FORMS.items():
        share = sum(bool(pattern.fullmatch(text)) for text in some) / len(some)
        if share >= _MOST:
            yield (
                f"{percent(share)} of the texts in {field!r} are {form}, like "
                f"{shortened(some[0])!r}; a sentence encoder makes little of them, so check the "
                "text column"
            )
            break
    share = sum(bool(_HTML.search(text)) for text in some) / len(some)
    if share > _HTML_SHARE:
        yield (
            f"{percent(share)} of the texts in {field!r} contain HTML tags or entities; strip them "
            "here and in the rows to be answered later"
        )
    yield from _decoding(field, column)


def _decoding(field: str, column: Sequence[str]) -> Iterator[str]:
    """Yield texts with control characters, and with letters that a wrong encoding spoilt."""
    garbled: list[tuple[str, str]] = []
    controlled: list[str] = []
    lost = 0
    for text in column:
        if not text.isprintable() and (sign := _CONTROL.search(text)):
            controlled.append(sign[0])
        if text.isascii():
            continue
        lost += _REPLACED in text
        found = next(filter(None, map(_intended, _BEYOND_ASCII.findall(text))), None)
        if found:
            garbled.append(found)
    if garbled:
        wrong, right = garbled[0]
        yield (
            f"{len(garbled):,} texts in {field!r} look wrongly decoded: {wrong!r} stands for "
            f"{right!r}; UTF-8 was read as another encoding when the file was made, so export it "
            "again as UTF-8"
        )
    if controlled:
        yield (
            f"{counted(len(controlled), 'text')} in {field!r} with control characters such as "
            f"{controlled[0]!r}, which belong to a terminal or a program; strip them here and in "
            "the rows to be answered later"
        )
    if lost:
        yield (
            f"{lost:,} texts in {field!r} contain U+FFFD, the sign for a letter that was lost; "
            "export the file again as UTF-8"
        )


def _intended(run: str) -> tuple[str, str] | None:
    """Return letters beyond ASCII, and those that they stand for if UTF-8 was read as Windows-1252.

    Letters that are right hardly ever are the bytes of UTF-8.
    """
    try:
        meant = b"".join(map(_byte, run)).decode("utf-8")
    except (UnicodeEncodeError, UnicodeDecodeError):
        return None
    # A control character is meant by nobody.
    return (run, meant) if meant.isprintable() else None


def _byte(letter: str) -> bytes:
    try:
        return letter.encode("cp1252")
    except UnicodeEncodeError:  # five bytes mean nothing there
        return letter.encode("latin-1")


def _named_labels(task: Task, train: Rows) -> Iterator[str]:
    """Yield that texts contain the names of their own labels, but not those of other labels."""
    if task.kind != "single_label" or len(train) < _FEWEST_ROWS:
        return
    named = wrong = 0
    positions = sampled(len(train))
    for position in positions:
        text, code = " ".join(train.texts[position]).casefold(), train.labels[position]
        assert isinstance(code, int)
        named += _contains(text, task.labels[code])
        wrong += _contains(text, task.labels[code - 1])
    if named >= _NAMED * len(positions) and wrong < _HALF * named:
        yield (
            f"{percent(named / len(positions))} of the texts contain the name of their own label; "
            "if the rows to be answered later will not, the score says nothing about them"
        )


def _contains(text: str, label: str) -> bool:
    """Return True if a case-folded text contains a label of two letters or more as a word."""
    name = label.casefold()
    at = text.find(name)
    if at < 0 or len(name) < 2:
        return False
    end = at + len(name)
    return not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum())
