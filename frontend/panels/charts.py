"""Altair charts of the benchmark and of single deltas, and the colors of the strategies.

Colors have a middle lightness, so that they stand out on the light and on the dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from frontend.glossary import human_bytes, metric_words, percent, task_words
from frontend.models import BenchmarkRow, Reliability, RunHistory

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
_BAND_COLOR = "#4c6ef5"
_ROW_HEIGHT = 26
_AXIS_HEIGHT = 70  # Streamlit fits legend and axis into the height
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


def benchmark_chart(rows: Sequence[BenchmarkRow], chosen: str) -> Layers:
    """Chart the metric by task and strategy.

    Args:
        rows: benchmark rows of all tasks, in the order to show.
        chosen: name of the task to highlight.
    """
    low = min([0.0, *(row.value for row in rows)])
    high = max([1.0, *(row.value for row in rows)])
    x = alt.X(
        "value:Q",
        title=None,
        scale=alt.Scale(domain=[low, high]),
        axis=alt.Axis(tickCount=5, format=".1f", domain=False, ticks=False),
    )
    y = _task_axis(rows, chosen)
    height = _ROW_HEIGHT * len({row.task for row in rows}) + _AXIS_HEIGHT
    marked = {"task": task_words(chosen).title}
    band = (
        alt.Chart({"values": [marked] if any(row.task == chosen for row in rows) else []})
        .mark_rect(color=_BAND_COLOR, opacity=0.14, cornerRadius=4)
        .encode(y=y, x=alt.datum(low), x2=alt.datum(high))
    )
    base = alt.Chart({"values": _values(rows, chosen)})
    spread = base.mark_rule(opacity=_FAINT, color=_NEUTRAL, strokeWidth=2).encode(
        y=y, x=alt.X("min(value):Q", title=None), x2="max(value):Q"
    )
    points = base.mark_circle(size=110).encode(
        y=y,
        x=x,
        color=_strategy_color(rows, columns=4),
        opacity=alt.condition(alt.datum.chosen, alt.value(1.0), alt.value(0.65)),
        tooltip=_tooltip(),
    )
    return alt.layer(band, spread, points).properties(height=height)


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
        alt.Chart({"values": ends}).mark_line(strokeDash=[4, 4], color=_NEUTRAL).encode(x=x, y=y)
    )
    base = alt.Chart({"values": bins}).encode(x=x, y=y)
    gaps = base.mark_rule(opacity=_FAINT, color=color, strokeWidth=2).encode(
        y2=alt.Y2("probability:Q")
    )
    points = base.mark_circle(color=color, opacity=0.9).encode(
        size=alt.Size("rows:Q", legend=None, scale=alt.Scale(domainMin=0, range=[15, 350])),
        tooltip=[
            alt.Tooltip("probability:Q", title="Probability", format=".3f"),
            alt.Tooltip("share:Q", title="Were right", format=".3f"),
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
    return alt.layer(lines.mark_line(), lines.mark_circle(size=24)).properties(height=240)


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
    line, points = base.mark_line(color=color), base.mark_circle(size=40, color=color)
    return alt.layer(line, points, ring).properties(height=230)


def _step_axis(history: RunHistory) -> alt.X:
    last = max([*history.train.step, *history.selection.step])
    return alt.X(
        "step:Q",
        title="Step",
        scale=alt.Scale(domain=[0, last]),
        axis=alt.Axis(tickCount=5, tickMinStep=1, grid=False, format=",d"),
    )


def _task_axis(rows: Sequence[BenchmarkRow], chosen: str) -> alt.Y:
    """Return an axis with the tasks in the order of the rows, the chosen task in bold."""
    is_chosen = alt.datum.label == task_words(chosen).title
    return alt.Y(
        "task:N",
        sort=list(dict.fromkeys(task_words(row.task).title for row in rows)),
        title=None,
        axis=alt.Axis(
            domain=False,
            ticks=False,
            labelPadding=8,
            labelFlush=False,
            labelBaseline="middle",
            labelFontWeight=alt.condition(is_chosen, alt.value("bold"), alt.value("normal")),
        ),
    )


def _values(rows: Sequence[BenchmarkRow], chosen: str) -> list[dict[str, Any]]:
    return [
        {
            "task": task_words(row.task).title,
            "strategy": row.strategy,
            "value": row.value,
            "metric": metric_words(row.metric),
            "size_bytes": row.size_bytes,
            "size": human_bytes(row.size_bytes),
            "share": percent(row.trained_share),
            "chosen": row.task == chosen,
        }
        for row in rows
    ]


def _strategy_color(rows: Sequence[BenchmarkRow], columns: int) -> alt.Color:
    colors = strategy_colors([row.strategy for row in rows])
    return alt.Color(
        "strategy:N",
        scale=alt.Scale(domain=list(colors), range=list(colors.values())),
        legend=alt.Legend(title=None, orient="top", symbolType="circle", columns=columns),
    )


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("task:N", title="Task"),
        alt.Tooltip("strategy:N", title="Strategy"),
        alt.Tooltip("metric:N", title="Metric"),
        alt.Tooltip("value:Q", title="Value", format=".3f"),
        alt.Tooltip("size:N", title="Delta"),
        alt.Tooltip("share:N", title="Trained"),
    ]
