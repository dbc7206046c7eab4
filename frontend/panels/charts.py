"""Altair charts of single deltas, and the colors of the strategies.

Colors have a middle lightness, so that they stand out on the light and on the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from frontend.glossary import metric_words
from frontend.models import Reliability, RunHistory

_COLORS = {
    "bitfit": "#4c6ef5",
    "layernorm": "#0ca678",
    "random": "#f76707",
    "head": "#868e96",
    "full": "#be4bdb",
    "top": "#e64980",
    "attention": "#1098ad",
    "ffn": "#b58105",
    "params": "#7950f2",
}
_OTHER_COLORS = ("#d6336c", "#5c940d", "#1c7ed6", "#c2255c", "#087f5b", "#9c36b5")
_FAINT = 0.4
_NEUTRAL = "#868e96"
_TRAIN, _SELECTION = "train rows", "selection rows"

# The declared result of `alt.layer`.
Layers = alt.LayerChart | alt.FacetChart


def strategy_colors(strategies: Sequence[str]) -> dict[str, str]:
    """Give each strategy a color, the same on the whole page."""
    colors: dict[str, str] = {}
    for strategy in dict.fromkeys(strategies):
        color = _COLORS.get(strategy.partition(":")[0]) if "+" not in strategy else None
        if color is None or color in colors.values():
            spare = [other for other in _OTHER_COLORS if other not in colors.values()]
            color = spare[0] if spare else _OTHER_COLORS[len(colors) % len(_OTHER_COLORS)]
        colors[strategy] = color
    return colors


def reliability_chart(found: Reliability, color: str) -> Layers:
    """Chart the share of right answers by probability, against the diagonal of a perfect match.

    The area of a point is in proportion to its number of rows; an empty bin has none.
    """
    bins = [
        {"rows": rows, "probability": probability, "share": share}
        for rows, probability, share in zip(
            found.counts, found.probability, found.share, strict=True
        )
        if rows
    ]
    lowest = min([1.0, *(min(each["probability"], each["share"]) for each in bins)])
    domain = [math.floor(10 * lowest) / 10, 1.0]
    scale, axis = alt.Scale(domain=domain), alt.Axis(format=".1f", tickCount=5)
    x = alt.X("probability:Q", title="Probability", scale=scale, axis=axis)
    y = alt.Y("share:Q", title="Share that was right", scale=scale, axis=axis)
    ends = [{"probability": end, "share": end} for end in domain]
    diagonal = (
        alt.Chart({"values": ends})
        .mark_line(aria=False, strokeDash=[4, 4], color=_NEUTRAL)
        .encode(x=x, y=y)
    )
    base = alt.Chart({"values": bins}).encode(x=x, y=y)
    gaps = base.mark_rule(opacity=_FAINT, color=color, strokeWidth=2).encode(
        y2=alt.Y2("probability:Q")
    )
    points = base.mark_circle(color=color, opacity=0.9).encode(
        size=alt.Size("rows:Q", legend=None, scale=alt.Scale(domainMin=0, range=[15, 350])),
        tooltip=[
            alt.Tooltip("probability:Q", title="Probability", format=".3f"),
            alt.Tooltip("share:Q", title="Share right", format=".3f"),
            alt.Tooltip("rows:Q", title="Number"),
        ],
    )
    return alt.layer(diagonal, gaps, points).properties(height=270)


def loss_chart(history: RunHistory, color: str) -> Layers:
    """Chart the loss of train and selection rows by step."""
    train, selection = history.train, history.selection
    values: list[dict[str, Any]] = [
        {"step": step, "loss": loss, "rows": _TRAIN, "rate": f"{rate:.2g}"}
        for step, loss, rate in zip(train.step, train.loss, train.learning_rate, strict=True)
    ]
    values += [
        {"step": step, "loss": loss, "rows": _SELECTION, "rate": ""}
        for step, loss in zip(selection.step, selection.loss, strict=True)
    ]
    lines = alt.Chart({"values": values}).encode(
        x=_step_axis(history),
        y=alt.Y("loss:Q", title="Loss", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
        color=alt.Color(
            "rows:N",
            scale=alt.Scale(domain=[_TRAIN, _SELECTION], range=[_NEUTRAL, color]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        tooltip=[
            alt.Tooltip("rows:N", title="Loss of"),
            alt.Tooltip("step:Q", title="Step"),
            alt.Tooltip("loss:Q", title="Loss", format=".4f"),
            alt.Tooltip("rate:N", title="Learning rate"),
        ],
    )
    return alt.layer(lines.mark_line(aria=False), lines.mark_circle(size=24)).properties(height=240)


def metric_chart(history: RunHistory, metric: str, color: str) -> Layers:
    """Chart the primary metric of the selection rows by step, with the best state as a ring."""
    selection = history.selection
    values = [
        {"step": step, "value": value, "best": at == selection.best}
        for at, (step, value) in enumerate(zip(selection.step, selection.metric, strict=True))
    ]
    base = alt.Chart({"values": values}).encode(
        x=_step_axis(history),
        y=alt.Y(
            "value:Q",
            title=metric_words(metric),
            scale=alt.Scale(zero=False),
            axis=alt.Axis(tickCount=4),
        ),
        tooltip=[
            alt.Tooltip("step:Q", title="Step"),
            alt.Tooltip("value:Q", title=metric_words(metric), format=".4f"),
        ],
    )
    ring = base.transform_filter(alt.datum.best).mark_point(size=160, color=color, strokeWidth=2)
    line, points = base.mark_line(aria=False, color=color), base.mark_circle(size=40, color=color)
    return alt.layer(line, points, ring).properties(height=230)


def _step_axis(history: RunHistory) -> alt.X:
    last = max([*history.train.step, *history.selection.step])
    return alt.X(
        "step:Q",
        title="Step",
        scale=alt.Scale(domain=[0, last]),
        axis=alt.Axis(tickCount=5, tickMinStep=1, grid=False, format=",d"),
    )
