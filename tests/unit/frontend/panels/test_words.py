"""Coloured words: escaped, complete, told apart without colour, and the sentences about them."""

from __future__ import annotations

import re
from html import unescape

import pytest

from frontend.models import ExplainedWord, Explanation, StrategyExplanation
from frontend.panels.words import (
    agreement_sentence,
    coloured_texts,
    legend,
    loss_records,
    strongest_sentence,
)

TEXT = "A <b>good</b> film & more, sadly."
WORDS = tuple(
    ExplainedWord("text", found[0], *found.span())
    for found in re.finditer(r"good|film|more|sadly", TEXT)
)


def explanation(
    *losses: tuple[float | None, ...], agreement: float | None = None, label: str | None = "<good>"
) -> Explanation:
    results = tuple(
        StrategyExplanation(f"s{n}", "0" * 16, 0.9, lost) for n, lost in enumerate(losses)
    )
    return Explanation("single_label", label, WORDS, results, agreement)


def test_the_text_is_whole_and_escaped() -> None:
    found = explanation((0.5, 0.0, None, -0.25))
    html = coloured_texts(found, found.results[0], {"text": TEXT}, "#123456")
    (paragraph,) = re.findall(r"<p>(.*)</p>", html)
    assert unescape(re.sub(r"</?mark[^>]*>", "", paragraph)) == TEXT
    assert "<b>good" not in html
    assert "&lt;good&gt;" in legend(found.label)


def test_words_for_and_against_differ_in_more_than_colour() -> None:
    found = explanation((0.5, 0.0, None, -0.25))
    html = coloured_texts(found, found.results[0], {"text": TEXT}, "#123456")
    marks = re.findall(r'<mark class="db-(\w+)"[^>]*title="([^"]*)">([^<]*)', html)
    assert marks == [("for", "+0.500", "good"), ("against", "-0.250", "sadly")]


def test_small_losses_are_not_blown_up() -> None:
    found = explanation((0.001, 0.002, 0.0, 0.0))
    assert "<mark" not in coloured_texts(found, found.results[0], {"text": TEXT}, "#123456")
    assert "No single word" in strongest_sentence(found)


def test_fields_of_a_pair_are_named() -> None:
    found = explanation((0.5, 0.1, 0.1, 0.1))
    one = coloured_texts(found, found.results[0], {"text": TEXT}, "red")
    both = coloured_texts(found, found.results[0], {"text": TEXT, "other": "x"}, "red")
    assert "<b>text</b>" not in one
    assert "<b>text</b>" in both
    assert "<b>other</b> x" in both
    records = loss_records(found, is_pair=True)
    assert records[0] == {"Text": "text", "Word": "good", "s0": 0.5}


def test_the_word_of_all_strategies_together() -> None:
    found = explanation((0.4, 0.1, 0.0, -0.2), (0.2, 0.5, None, 0.0))
    assert strongest_sentence(found) == (
        "Without “good”, the probability falls by 30 points on average."
    )
    number = explanation((0.4, 0.1, 0.0, -0.2), label=None)
    assert "the value falls by 0.40" in strongest_sentence(number)


@pytest.mark.parametrize(
    ("agreement", "said"),
    [(0.8, "agree on"), (0.4, "agree in part"), (0.1, "disagree"), (-0.5, "disagree")],
)
def test_agreement_is_said_with_its_number(agreement: float, said: str) -> None:
    sentence = agreement_sentence(explanation((0.1,) * 4, (0.2,) * 4, agreement=agreement))
    assert said in sentence
    assert f"{agreement:.2f}" in sentence


def test_one_strategy_has_nothing_to_agree_with() -> None:
    assert "One strategy alone" in agreement_sentence(explanation((0.1,) * 4))
