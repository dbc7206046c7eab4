"""HTML of a text whose words are coloured by what is lost without them, and the same as numbers.

Blue words speak for the label and orange ones against it, which people with any colour vision tell
apart; a solid or dashed line below them says the same. Every text is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from frontend.models import ExplainedWord, Explanation, StrategyExplanation

_FOR, _AGAINST = "76,110,245", "247,103,7"  # red, green, blue
_MOST_OPAQUE = 0.75
_LEAST_SCALE = 0.05  # below, all words matter little, and strong colours would say otherwise
_NOTABLE = 0.01  # a smaller loss is none
_FAINT = 0.06  # of the largest loss; less is not coloured
_AGREES, _DIFFERS = 0.6, 0.2  # mean rank correlations


def largest_loss(explanation: Explanation) -> float:
    """Return the loss that gets the strongest colour: the largest of any word and strategy."""
    losses = [abs(lost) for result in explanation.results for lost in result.lost if lost]
    return max([*losses, _LEAST_SCALE])


def coloured_texts(
    explanation: Explanation, result: StrategyExplanation, texts: Mapping[str, str], color: str
) -> str:
    """Return a strategy's texts with coloured words.

    Args:
        explanation: words, and the losses of all strategies.
        result: the losses of this strategy.
        texts: text of each field.
        color: color of the strategy.
    """
    most = largest_loss(explanation)
    score = f"{result.score:.0%}" if explanation.label is not None else f"{result.score:.2f}"
    lines = "".join(
        f"<p>{_field_name(field, texts)}{_text(field, text, explanation.words, result, most)}</p>"
        for field, text in texts.items()
    )
    return (
        f'<article class="db-why"><h3><i style="background:{escape(color)}" aria-hidden="true">'
        f"</i>{escape(result.strategy)} <span>{score.replace('%', ' %')}</span></h3>"
        f"{lines}</article>"
    )


def legend(label: str | None) -> str:
    """Return what the colours mean."""
    target = f"“{escape(label)}”" if label is not None else "a higher value"
    return (
        '<p class="db-meaning"><mark class="db-for" style="background:rgba('
        f'{_FOR},.5)">speaks for</mark> {target} <mark class="db-against" '
        f'style="background:rgba({_AGAINST},.5)">speaks against</mark> it. '
        "The stronger the colour, the more is lost or won without the word.</p>"
    )


def loss_records(explanation: Explanation, *, is_pair: bool) -> list[dict[str, Any]]:
    """Return the losses as rows of a table: a word, and a number for each strategy."""
    return [
        {
            **({"Text": word.field} if is_pair else {}),
            "Word": word.text,
            **{result.strategy: result.lost[place] for result in explanation.results},
        }
        for place, word in enumerate(explanation.words)
    ]


def agreement_sentence(explanation: Explanation) -> str:
    """Say how far the strategies agree on the words that matter."""
    found, count = explanation.agreement, len(explanation.results)
    if found is None:
        return "One strategy alone can't be checked against others." if count == 1 else ""
    number = f"mean rank correlation {found:.2f}"
    if found >= _AGREES:
        return f"The {count} strategies agree on the words that matter ({number})."
    if found >= _DIFFERS:
        return f"The {count} strategies agree in part ({number}): read the colours with care."
    return (
        f"The {count} strategies disagree on the words that matter ({number}): don't rely on one."
    )


def strongest_sentence(explanation: Explanation) -> str:
    """Name the word that speaks most for the label, by the mean of all strategies."""
    means = []
    for place, word in enumerate(explanation.words):
        losses = [result.lost[place] for result in explanation.results]
        known = [lost for lost in losses if lost is not None]
        if known:
            means.append((sum(known) / len(known), word.text))
    if not means or max(means)[0] < _NOTABLE:
        return "No single word carries the answer: it stays the same without any one of them."
    lost, name = max(means)
    if explanation.label is None:
        return f"Without “{name}”, the value falls by {lost:.2f} on average."
    return f"Without “{name}”, the probability falls by {lost * 100:.0f} points on average."


def _field_name(field: str, texts: Mapping[str, str]) -> str:
    return f"<b>{escape(field)}</b> " if len(texts) > 1 else ""


def _text(
    field: str,
    text: str,
    words: Sequence[ExplainedWord],
    result: StrategyExplanation,
    most: float,
) -> str:
    parts, end = [], 0
    for word, lost in zip(words, result.lost, strict=True):
        if word.field != field:
            continue
        parts.append(escape(text[end : word.start]))
        parts.append(_word(text[word.start : word.end], lost, most))
        end = word.end
    return "".join([*parts, escape(text[end:])])


def _word(word: str, lost: float | None, most: float) -> str:
    share = 0.0 if lost is None else lost / most
    if abs(share) < _FAINT:
        return escape(word)
    kind, color = ("for", _FOR) if share > 0 else ("against", _AGAINST)
    style = f"background:rgba({color},{abs(share) * _MOST_OPAQUE:.2f})"
    return f'<mark class="db-{kind}" style="{style}" title="{lost:+.3f}">{escape(word)}</mark>'
