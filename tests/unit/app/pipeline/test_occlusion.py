"""Words of a text, rows without them, and the agreement of strategies about them."""

from __future__ import annotations

import pytest
from scipy.stats import spearmanr

from app.pipeline.occlusion import (
    agreement,
    num_rows_without_words,
    rank_correlation,
    row_words,
    rows_without_words,
    split_words,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The soup wasn't bad!", ["The", "soup", "wasn't", "bad"]),
        ("  a  well-known U.S. actor, (2024) ", ["a", "well-known", "U.S", "actor", "2024"]),
        ("I loved it 🙂🙂 ... 5 €", ["I", "loved", "it", "🙂🙂", "5", "€"]),
        ("我喜欢 the film", ["我", "喜", "欢", "the", "film"]),
        ("Größe naïve Ελλάδα", ["Größe", "naïve", "Ελλάδα"]),
        ("?! ...", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in split_words(text)] == words


def test_each_word_is_left_out_once_and_nothing_else() -> None:
    texts = ("a good film, really", "not bad")
    words = row_words(texts)
    rows, places = rows_without_words(texts, words)
    assert rows == [
        texts,
        ("good film, really", "not bad"),
        ("a film, really", "not bad"),
        ("a good , really", "not bad"),
        ("a good film, ", "not bad"),
        ("a good film, really", "bad"),
        ("a good film, really", "not "),
    ]
    assert places == [1, 2, 3, 4, 5, 6]


def test_the_only_word_of_a_text_stays() -> None:
    texts = ("great!", "a film")
    rows, places = rows_without_words(texts, row_words(texts))
    assert places == [None, 1, 2]
    assert rows == [texts, ("great!", "film"), ("great!", "a ")]


def test_ranks_are_compared_as_by_scipy() -> None:
    one = [0.1, 0.1, -0.5, 0.7, 0.2, 0.1, 0.0]
    other = [0.3, 0.1, 0.1, 0.9, -0.2, 0.1, 0.4]
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(one, one) == 1.0
    assert rank_correlation(one, [-value for value in one]) == pytest.approx(-1.0)


def test_nothing_to_compare_has_no_correlation() -> None:
    assert rank_correlation([0.1, 0.2], [0.1, 0.2]) is None, "two words always agree or not"
    assert rank_correlation([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert agreement([[0.1, 0.2, 0.3]]) is None, "one strategy"
    assert agreement([[0.0] * 4, [0.0] * 4]) is None


def test_agreement_is_the_mean_over_all_pairs_of_strategies() -> None:
    up, down = [0.1, 0.2, None, 0.3], [0.3, 0.2, None, 0.1]
    assert agreement([up, up]) == 1.0
    assert agreement([up, up, down]) == pytest.approx(-1 / 3)


@pytest.mark.parametrize("texts", [("a b a",), ("a",), ("a", "b c"), ("", "?"), ("a b", "c d")])
def test_rows_are_counted_before_they_are_made(texts: tuple[str, ...]) -> None:
    words = row_words(texts)
    assert num_rows_without_words(texts, words) == len(rows_without_words(texts, words)[0])
