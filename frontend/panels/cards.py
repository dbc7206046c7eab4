"""HTML for prediction cards, which Streamlit has no widgets for.

Pure functions turn data into HTML; `page.css` styles the classes. Every text from the server or the
user is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from frontend.glossary import Scale, human_bytes, label_words, metric_words, probability
from frontend.models import BenchmarkRow, Prediction, StudyRow

_MAX_BARS = 5
_THRESHOLD = 0.5


@dataclass(frozen=True)
class Card:
    """One prediction, ready to show."""

    title: str  # a strategy or a task
    note: str  # small print under the title
    color: str  # of the bars
    prediction: Prediction
    footer: str
    scale: Scale | None = None  # of a regression value, if known


def card_grid(cards: Sequence[Card], label: str) -> str:
    """Lay cards side by side; `label` names the group for screen readers."""
    inner = "".join(_card(card) for card in cards)
    return f'<section class="db-grid" aria-label="{escape(label)}">{inner}</section>'


def delta_footer(row: BenchmarkRow | None, version: str, studied: StudyRow | None = None) -> str:
    """Return a card's small print: size of the delta, score on the dev set, spread over seeds."""
    if row is None:
        return f"version {version[:8]}"
    score = f"{human_bytes(row.size_bytes)} · {metric_words(row.metric)} {row.value:.3f}"
    if studied is None or studied.spread is None:
        return score
    return f"{score} (study: {studied.mean:.3f} ± {studied.spread:.3f}, {studied.seeds} seeds)"


def _card(card: Card) -> str:
    item = card.prediction
    answer = _scale_bar(item, card.scale) if item.value is not None else _bars(item)
    return (
        f'<article class="db-card" style="--db-color:{escape(card.color)}">'
        f'<h3><i aria-hidden="true"></i>{escape(card.title)}</h3>'
        f'<p class="db-note">{escape(card.note)}</p>'
        f'<p class="db-verdict">{_verdict(item)}</p><div>{answer}</div>'
        f'<p class="db-footer">{escape(card.footer)}</p></article>'
    )


def _verdict(item: Prediction) -> str:
    if item.value is not None:
        return f"<b>{item.value:.2f}</b>"
    if item.kind == "multi_label":
        found = ", ".join(escape(label_words(label)) for label in item.labels)
        return f"<b>{found or 'none of the labels'}</b>"
    score = f" <span>{probability(item.score)}</span>" if item.score is not None else ""
    label = escape(label_words(item.labels[0]))
    return (
        f"<b>{label}</b>{score}" if item.is_answered else f"<b>no answer</b> perhaps {label}{score}"
    )


def _bars(item: Prediction) -> str:
    """Draw a bar for each of the most likely labels, the most likely first."""
    kept = sorted(item.scores, key=lambda label: item.scores[label], reverse=True)[:_MAX_BARS]
    # A delta with thresholds of its own would contradict a mark at one half.
    over_half = {label for label, score in item.scores.items() if score >= _THRESHOLD}
    has_mark = item.kind == "multi_label" and over_half == set(item.labels)
    bars = "".join(
        _bar(
            label,
            item.scores[label],
            is_winner=item.is_answered and label in item.labels,
            has_mark=has_mark,
        )
        for label in kept
    )
    more = len(item.scores) - len(kept)
    rest = f'<li class="db-more">and {more} less likely</li>' if more else ""
    return f'<ul class="db-bars">{bars}{rest}</ul>'


def _bar(label: str, score: float, *, is_winner: bool, has_mark: bool) -> str:
    mark = f'<u style="left:{_THRESHOLD:.0%}"></u>' if has_mark else ""
    width = min(max(score, 0.0), 1.0)
    winner = ' class="db-winner"' if is_winner else ""
    return (
        f"<li{winner}><span>{escape(label_words(label))}</span>"
        f"<span>{probability(score)}</span>"
        f'<div aria-hidden="true"><s style="width:{width:.1%}"></s>{mark}</div></li>'
    )


def _scale_bar(item: Prediction, scale: Scale | None) -> str:
    """Draw the position of the value between the ends of the scale; nothing without a scale."""
    if scale is None or item.value is None:
        return ""
    share = (item.value - scale.low) / (scale.high - scale.low)
    share = min(max(share, 0.0), 1.0)
    return (
        f'<div class="db-scale" aria-hidden="true"><s style="width:{share:.1%}"></s>'
        f'<u style="left:{share:.1%}"></u></div>'
        f'<p class="db-ends"><span>{scale.low:g} {escape(scale.low_means)}</span>'
        f"<span>{scale.high:g} {escape(scale.high_means)}</span></p>"
    )
