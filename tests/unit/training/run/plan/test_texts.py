"""Odd texts: the wrong column, a wrong encoding, HTML, labels inside texts."""

from __future__ import annotations

import pytest

from tests.unit.training.run.plan.test_facts import rows_of, task_of
from tests.unit.training.run.plan.test_oddities import only, texts_of
from training.data.rows import Rows
from training.run.plan.texts import text_oddities

TASK = task_of("single_label", "negative", "positive")
PAIR = task_of("single_label", "negative", "positive", fields=("first", "second"))
COUNTS = {"negative": 30, "positive": 30}
SCRIPTS = (
    "Crème brûlée für {} Gäste à Besançon, naïve señor",
    "这是一个很好的电影 {}",
    "Это хороший фильм {}",
    "\u201c{}\u201d \u2013 I\u2019d say\u2026 5 € or £4 \U0001f600\U0001f44d",
)


def told(texts: list[str]) -> list[str]:
    """Return the oddities of texts with alternating labels."""
    rows = rows_of(texts, [n % 2 for n in range(len(texts))])
    return list(text_oddities(TASK, rows, COUNTS))


@pytest.mark.parametrize("pattern", SCRIPTS)
def test_sound_texts_are_not_odd(pattern: str) -> None:
    assert told(texts_of(60)) == []
    assert told([pattern.format(n) for n in range(60)]) == []


def test_one_text_everywhere() -> None:
    assert only(told(["the same"] * 60)).startswith("every train row has the text 'the same'")


def test_one_text_in_most_rows() -> None:
    sentence = only(told(["n/a"] * 40 + texts_of(20)))
    assert sentence.startswith("67 % of the train rows have the text 'n/a' in 'text'")


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        ("{}", "numbers"),
        ("{},50 %", "numbers"),
        ("-1.{}e5", "numbers"),
        ("2024-01-{}", "dates"),
        ("{}/12/2024 10:30", "dates"),
        ("https://example.org/{}", "links or ids"),
        ("name{}@example.org", "links or ids"),
        ("0f8fad5b-d9cb-469f-a165-7086728950{}", "links or ids"),
    ],
)
def test_a_column_without_language(pattern: str, form: str) -> None:
    sentence = only(told([pattern.format(n) for n in range(10, 70)]))
    assert sentence.startswith(f"100 % of the texts in 'text' are {form}, like ")


def test_texts_and_labels_that_are_swapped() -> None:
    task = task_of("single_label", *(f"a long sentence {n}" for n in range(30)))
    rows = rows_of(["sport", "politics"] * 30, [n % 30 for n in range(60)])
    sentence = only(text_oddities(task, rows, dict.fromkeys(task.labels, 2)))
    assert sentence.startswith("'text' has 2 different texts and the labels are 30")


@pytest.mark.parametrize(
    "right", ["é", "ü", "ñ", "\u2019", "\u201c", "€", "Ł", "日本", "—", "à", "привет"]
)
def test_utf8_read_as_windows_1252_is_shown_with_its_meaning(right: str) -> None:
    """Bytes that mean nothing in Windows-1252 become control characters, as browsers do it."""
    letters = [
        bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in right.encode()
    ]
    wrong = "".join(letters)
    sentence = only(told([*texts_of(50), f"a {wrong} b", f"{wrong}c"]))
    assert sentence.startswith(f"2 texts in 'text' look wrongly decoded: {wrong!r} stands for")
    assert repr(right) in sentence


def test_control_characters() -> None:
    texts = [f"\x1b[31m{text}\x1b[0m" if n % 2 else text for n, text in enumerate(texts_of(60))]
    assert only(told(texts)).startswith(
        "30 texts in 'text' with control characters such as '\\x1b', which belong to"
    )
    assert told([f"{text}\r\n\tmore" for text in texts_of(60)]) == []


def test_lost_letters() -> None:
    assert only(told([*texts_of(50), "na\ufffdve"])).startswith("1 texts in 'text' contain U+FFFD")


@pytest.mark.parametrize("markup", ["<br />", "<p>x</p>", '<a href="x">', "&amp;", "&#39;"])
def test_html(markup: str) -> None:
    sentence = only(told([f"{text} {markup}" for text in texts_of(60)]))
    assert sentence.startswith("100 % of the texts in 'text' contain HTML")


def test_signs_that_are_no_html() -> None:
    assert told([f"{text} a < b > c & d <3" for text in texts_of(60)]) == []


def test_texts_that_name_their_labels() -> None:
    texts = [f"{text} {TASK.labels[n % 2].title()}." for n, text in enumerate(texts_of(60))]
    assert only(told(texts)).startswith("100 % of the texts contain the name of their own label")


@pytest.mark.parametrize("end", ["positive or negative", "positively negatives"])
def test_texts_that_name_all_labels_or_none(end: str) -> None:
    assert told([f"{text} {end}" for text in texts_of(60)]) == []


def test_pairs_of_one_column() -> None:
    rows = Rows([(text, text) for text in texts_of(60)], [0, 1] * 30)
    sentence = only(text_oddities(PAIR, rows, COUNTS))
    assert sentence.startswith("100 % of the train rows have the same text in 'first' and 'second'")


def test_long_texts_are_shortened() -> None:
    sentence = only(told(["word " * 100] * 60))
    assert len(sentence) < 200
    assert "..." in sentence


def test_words_for_a_missing_text() -> None:
    sentence = only(told(["NA", "nan", "nan", *texts_of(57)]))
    assert sentence.startswith("3 texts in 'text' may stand for a missing text: 'NA', 'nan'; drop")


@pytest.mark.parametrize("pattern", ["['a', 'film', '{}']", "b'a film {}'", 'b"it\'s {}"'])
def test_lists_and_bytes_as_python_writes_them(pattern: str) -> None:
    sentence = only(told([pattern.format(n) for n in range(60)]))
    assert sentence.startswith("100 % of the texts in 'text' are lists or bytes of Python, like ")
