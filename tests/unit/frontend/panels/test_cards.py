"""Prediction cards and the small table: complete, escaped, and right for each kind of task."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from frontend.glossary import Scale
from frontend.models import FanOut, Prediction
from frontend.panels.cards import Card, card_grid, delta_footer
from tests.factories import benchmark_row

ROW = benchmark_row(value=0.4567)
SINGLE = Prediction(
    task="cola",
    strategy="bitfit",
    version="0123456789abcdef",
    kind="single_label",
    labels=("not_ok",),
    scores={"ok": 0.25, "not_ok": 0.75},
    value=None,
    truncated=False,
)


def card(prediction: Prediction, scale: Scale | None = None) -> str:
    return card_grid([Card("bitfit", "note", "#123456", prediction, "footer", scale)], "a group")


class Checker(HTMLParser):
    """Fails on tags that don't close in order; collects text and bar widths."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.widths: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)
        if tag == "s":
            self.widths.append(str(dict(attrs)["style"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += [data] if data.strip() else []


def test_a_single_label_shows_the_winner_and_every_score() -> None:
    found = Checker(card(SINGLE))
    assert found.text[:4] == ["bitfit", "note", "not ok", "75 %"]
    assert found.widths == ["width:75.0%", "width:25.0%"], "the most likely first"
    assert found.text[-1] == "footer"
    assert 'aria-label="a group"' in card(SINGLE)
    assert re.findall(r'<li class="db-winner"><span>([^<]*)', card(SINGLE)) == ["not ok"]


def test_a_row_without_an_answer_says_so_and_names_no_winner() -> None:
    html = card(replace(SINGLE, is_answered=False))
    text = " ".join(Checker(html).text)
    assert "no answer" in text
    assert "perhaps not ok" in text
    assert "db-winner" not in html
    assert "no answer" not in card(SINGLE)


@pytest.mark.parametrize(
    ("decision", "is_answered"),
    [({"decision": None}, False), ({"decision": "not_ok"}, True), ({}, True)],
)
def test_a_decision_of_null_is_no_answer(decision: dict[str, None], is_answered: bool) -> None:
    """A server of before has no decision, and always answers."""
    row = {"label": "not_ok", "scores": {"ok": 0.25, "not_ok": 0.75}} | decision
    about = {"task": "cola", "strategy": "bitfit", "version": "0", "kind": "single_label"}
    (found,) = FanOut(({**about, "predictions": [row]},)).predictions()
    assert found.is_answered is is_answered
    assert found.labels == ("not_ok",)


@pytest.mark.parametrize(("labels", "marks"), [(("a",), 2), (("a", "b"), 0), ((), 0)])
def test_only_a_threshold_of_one_half_is_marked(labels: tuple[str, ...], marks: int) -> None:
    several = replace(SINGLE, kind="multi_label", labels=labels, scores={"a": 0.6, "b": 0.3})
    assert card(several).count("<u ") == marks


def test_many_labels_show_the_likeliest_and_count_the_rest() -> None:
    scores = {f"label{n}": n / 100 for n in range(68)}
    many = replace(SINGLE, labels=("label67",), scores=scores)
    found = Checker(card(many))
    assert len(found.widths) == 5
    assert "and 63 less likely" in found.text
    assert "label67" in found.text
    assert "label62" not in found.text


def test_multi_label_has_independent_bars_with_a_threshold() -> None:
    several = replace(
        SINGLE, kind="multi_label", labels=("a", "b"), scores={"a": 0.9, "b": 0.6, "c": 0.2}
    )
    html = card(several)
    assert "a, b" in Checker(html).text
    assert html.count("left:50%") == 3
    assert html.count("db-winner") == 2
    none = replace(several, labels=(), scores={"a": 0.1})
    assert "none of the labels" in Checker(card(none)).text


@pytest.mark.parametrize(
    ("value", "width"), [(2.5, "50.0%"), (-1.0, "0.0%"), (7.0, "100.0%"), (5.0, "100.0%")]
)
def test_a_value_lies_on_its_scale(value: float, width: str) -> None:
    number = replace(SINGLE, kind="regression", labels=(), scores={}, value=value)
    found = Checker(card(number, Scale(0.0, 5.0, "unrelated", "same")))
    assert found.widths == [f"width:{width}"]
    assert {f"{value:.2f}", "0 unrelated", "5 same"} <= set(found.text)


def test_a_value_without_a_scale_is_a_number() -> None:
    found = Checker(card(replace(SINGLE, kind="regression", labels=(), scores={}, value=1234.5)))
    assert "1234.50" in found.text
    assert found.widths == []


def test_nothing_from_outside_becomes_markup() -> None:
    evil = '"><script>alert(1)</script>'
    poisoned = replace(SINGLE, labels=(evil,), scores={evil: 0.9})
    html = card_grid([Card(evil, evil, evil, poisoned, evil)], evil)
    assert "script" not in Checker(html).tags
    assert "<script" not in html


def test_the_footer_has_size_and_score_or_at_least_the_version() -> None:
    assert delta_footer(ROW, ROW.version) == "102 KB · Matthews correlation 0.457"
    assert delta_footer(None, ROW.version) == "version 01234567"
