"""Altair charts of the views Trust, Benchmark, Deltas and Server.

Colors have a middle lightness, so that they stand out on the light and on the dark theme; form or
text always says the same as the color. `frontend.panels.charts` has the charts of single deltas.
Tested by tests/unit/frontend/reports/test_charts.py.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import altair as alt

from frontend.glossary import human_bytes, metric_words, percent
from frontend.models import CurveRow, Reliability
from frontend.reports.benchmark import BASELINES, COSTS, Point, Reference, front
from frontend.reports.trust import RiskCurve

BLUE, ORANGE, GREEN, NEUTRAL = "#4c6ef5", "#f76707", "#0ca678", "#868e96"
_BYTES = (  # a Vega expression with the result of `human_bytes`, for the axis
    "datum.value >= 1e9 ? datum.value / 1e9 + ' GB' : datum.value >= 1e6 ? "
    "datum.value / 1e6 + ' MB' : datum.value / 1e3 + ' KB'"
)
_AXES = {
    "share": "format(datum.value, '~%')",
    "size_bytes": _BYTES,
    "seconds": "datum.value + ' s'",
}
_SHAPES = {"served deltas": "circle", "study": "square", "quality benchmark": "triangle-up"}

# A link in the same tab would load the page anew and lose what was typed.
_IN_ANOTHER_TAB = {"embedOptions": {"loader": {"target": "_blank"}}}

# The declared result of `alt.layer`.
Layers = alt.LayerChart | alt.FacetChart


def calibration_chart(after: Reliability, before: Reliability | None) -> Layers:
    """Chart the share of right answers by probability, with and without calibration."""
    values = [
        {"head": head, "probability": probability, "share": share, "rows": rows}
        for head, found in (("calibrated", after), ("before", before))
        if found is not None
        for rows, probability, share in zip(
            found.counts, found.probability, found.share, strict=True
        )
        if rows
    ]
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format=".1f", tickCount=5)
    x = alt.X("probability:Q", title="Stated probability", scale=scale, axis=axis)
    y = alt.Y("share:Q", title="Share that was right", scale=scale, axis=axis)
    diagonal = (
        alt.Chart({"values": [{"probability": end, "share": end} for end in (0, 1)]})
        .mark_line(aria=False, strokeDash=[4, 4], color=NEUTRAL)
        .encode(x=x, y=y)
    )
    names, colors = ["calibrated", "before"], [BLUE, ORANGE]
    base = alt.Chart({"values": values}).encode(
        x=x,
        y=y,
        color=alt.Color("head:N", scale=alt.Scale(domain=names, range=colors), legend=_legend()),
        shape=alt.Shape(
            "head:N", scale=alt.Scale(domain=names, range=["circle", "diamond"]), legend=_legend()
        ),
    )
    points = base.mark_point(filled=True, opacity=0.9).encode(
        size=alt.Size("rows:Q", legend=None, scale=alt.Scale(domainMin=0, range=[25, 350])),
        tooltip=[
            alt.Tooltip("head:N", title="Head"),
            alt.Tooltip("probability:Q", title="Stated", format=".3f"),
            alt.Tooltip("share:Q", title="Share right", format=".3f"),
            alt.Tooltip("rows:Q", title="Number", format=","),
        ],
    )
    line = base.mark_line(aria=False, opacity=0.4).encode(shape=alt.Shape())
    return alt.layer(diagonal, line, points).properties(height=300)


def risk_chart(curve: RiskCurve) -> Layers:
    """Chart the share of wrong answers against the share of rows that get one."""
    values = [
        {"coverage": coverage, "risk": risk, "limit": limit}
        for coverage, risk, limit in zip(curve.coverage, curve.risk, curve.limit, strict=True)
    ]
    base = alt.Chart({"values": values}).encode(
        x=alt.X(
            "coverage:Q",
            title="Rows that get an answer",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5),
        ),
        y=alt.Y(
            "risk:Q",
            title="Wrong among them",
            scale=alt.Scale(domainMin=0),
            axis=alt.Axis(format="~%", tickCount=5),
        ),
        tooltip=[
            alt.Tooltip("coverage:Q", title="Get an answer", format=".1%"),
            alt.Tooltip("risk:Q", title="Wrong among them", format=".2%"),
            alt.Tooltip("limit:Q", title="Minimum probability", format=".3f"),
        ],
    )
    line, points = (
        base.mark_line(aria=False, color=BLUE),
        base.mark_circle(color=BLUE, size=18, opacity=0.6),
    )
    return alt.layer(line, points).properties(height=300)


def value_chart(gold: Sequence[float], decided: Sequence[float], rows: Sequence[int]) -> Layers:
    """Chart decided against gold values of a regression, with the diagonal of a perfect match."""
    values = [
        {"gold": known, "decided": found, "row": row}
        for known, found, row in zip(gold, decided, rows, strict=True)
    ]
    ends = [min([*gold, *decided]), max([*gold, *decided])]
    x = alt.X("gold:Q", title="Gold value", scale=alt.Scale(domain=ends))
    y = alt.Y("decided:Q", title="Decided value", scale=alt.Scale(domain=ends))
    diagonal = (
        alt.Chart({"values": [{"gold": end, "decided": end} for end in ends]})
        .mark_line(aria=False, strokeDash=[4, 4], color=NEUTRAL)
        .encode(x=x, y=y)
    )
    points = (
        alt.Chart({"values": values})
        .mark_circle(color=BLUE, size=22, opacity=0.35)
        .encode(x=x, y=y, tooltip=["row:Q", "gold:Q", alt.Tooltip("decided:Q", format=".3f")])
    )
    return alt.layer(diagonal, points).properties(height=320)


def cost_chart(
    points: Sequence[Point],
    cost: str,
    known: Reference,
    colors: Mapping[str, str],
    served: Container[tuple[str, str]] = (),
) -> Layers:
    """Chart one task's metric against a cost: points with spreads, the front, and references.

    A click on a point whose delta is served opens that delta in another tab.

    Args:
        points: points of one task and metric.
        cost: one of `COSTS`.
        known: scores to draw as lines and as a mark.
        colors: color of each method.
        served: task and strategy of the deltas that are served.
    """
    priced = [point for point in points if point.cost(cost) is not None and not point.is_baseline]
    y = alt.Y("value:Q", title=None, scale=_score_scale(priced, known))
    axis = alt.Axis(labelExpr=_AXES[cost], tickCount=4, grid=False, labelOverlap=True)
    x = alt.X("cost:Q", title=COSTS[cost], scale=alt.Scale(type="log"), axis=axis)
    base = alt.Chart({"values": [_value(point, cost, served) for point in priced]})
    bars = base.mark_rule(strokeWidth=2, opacity=0.55).encode(
        x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=_method_color(colors)
    )
    marks = base.mark_point(filled=True, size=85, opacity=0.9).encode(
        x=x,
        y=y,
        color=_method_color(colors),
        shape=alt.Shape(
            "source:N",
            scale=alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values())),
            legend=None,
        ),
        tooltip=_point_tooltip(cost),
        href="link:N",
    )
    best = alt.Chart({"values": [_value(point, cost, ()) for point in front(priced, cost)]})
    step = best.mark_line(aria=False, interpolate="step-after", color=NEUTRAL, opacity=0.6).encode(
        x=x, y=y
    )
    layers = alt.layer(*_references(known), step, bars, marks, usermeta=_IN_ANOTHER_TAB)
    return layers.properties(height=240)


def _score_scale(points: Sequence[Point], known: Reference) -> alt.Scale:
    """Return the scale of scores; a lone score stands in the middle of a tenth."""
    values = {point.value for point in points}
    if len(values) == 1 and known == Reference(None, None, None):
        (value,) = values
        return alt.Scale(domain=[round(value - 0.05, 2), round(value + 0.05, 2)])
    return alt.Scale(zero=False, nice=True)


def low_data_chart(points: Sequence[Point], colors: Mapping[str, str], full_title: str) -> Layers:
    """Chart one task's metric against the number of train rows, with spreads over seeds."""
    base = alt.Chart({"values": [_value(point, "share", ()) for point in points]}).encode(
        x=alt.X(
            "train_rows:Q",
            title="Train rows",
            scale=alt.Scale(type="log", nice=False, padding=12),
            axis=alt.Axis(format="~s", tickCount=4, grid=False),
        ),
        color=_method_color(colors),
    )
    y = alt.Y("value:Q", title=full_title, scale=alt.Scale(zero=False))
    bars = base.mark_rule(opacity=0.45, strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(aria=False).encode(y=y)
    dots = base.mark_circle(size=50).encode(y=y, tooltip=_point_tooltip("share"))
    return alt.layer(bars, line, dots).properties(height=240)


def learning_chart(curves: Sequence[CurveRow], colors: Mapping[str, str]) -> Layers:
    """Chart one task's metric on the selection rows by step: medians in the range of the seeds."""
    values = [
        {"method": row.strategy, "step": step, "value": middle, "low": low, "high": high}
        for row in curves
        for step, middle, low, high in zip(row.step, row.median, row.low, row.high, strict=True)
        if step  # the start has no place on a log axis
    ]
    words = metric_words(curves[0].metric)
    base = alt.Chart({"values": values}).encode(
        x=alt.X(
            "step:Q",
            title="Step",
            scale=alt.Scale(type="log", nice=False, padding=8),
            axis=alt.Axis(tickCount=4, grid=False, format="~s"),
        ),
        color=_method_color(colors),
    )
    scale = alt.Scale(zero=False)
    band = base.mark_area(aria=False, opacity=0.15).encode(
        y=alt.Y("low:Q", title=words, scale=scale), y2="high:Q"
    )
    lines = base.mark_line(aria=False).encode(y=alt.Y("value:Q", title=words, scale=scale))
    dots = base.mark_circle(size=36).encode(
        y=alt.Y("value:Q", title=words, scale=scale),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("step:Q", title="Step", format=","),
            alt.Tooltip("value:Q", title="Median", format=".4f"),
            alt.Tooltip("low:Q", title="Lowest", format=".4f"),
            alt.Tooltip("high:Q", title="Highest", format=".4f"),
        ],
    )
    return alt.layer(band, lines, dots).properties(height=240)


def traffic_chart(values: Sequence[Mapping[str, Any]], title: str, color: str) -> Layers:
    """Chart a rate over the last readings; `values` have `age` (seconds ago) and `value`."""
    base = alt.Chart({"values": list(values)}).encode(
        x=alt.X(
            "age:Q",
            title=None,
            scale=alt.Scale(reverse=True, domainMin=0),
            axis=alt.Axis(labelExpr="datum.value ? '-' + datum.value + ' s' : 'now'", tickCount=4),
        ),
        y=alt.Y(
            "value:Q",
            title=title,
            scale=alt.Scale(domain=[0, max([1.0, *(each["value"] for each in values)])]),
            axis=alt.Axis(tickCount=3, format="~s"),
        ),
        tooltip=[alt.Tooltip("value:Q", title=title, format=",.1f")],
    )
    area = base.mark_area(aria=False, color=color, opacity=0.18)
    return alt.layer(area, base.mark_line(aria=False, color=color)).properties(height=150)


def _references(known: Reference) -> list[alt.Chart]:
    """Return the lines of full fine-tuning and scikit-learn, and the mark of the larger class."""
    drawn: list[alt.Chart] = []
    left, right = {"align": "left", "baseline": "bottom"}, {"align": "right", "baseline": "top"}
    for text, value, dash, side in (
        ("full fine-tuning", known.full, [1, 0], left),
        ("scikit-learn", known.baseline, [6, 4], right),
    ):
        if value is not None:
            base = alt.Chart({"values": [{"value": value, "text": text}]})
            y = alt.Y("value:Q", title=None)
            rule = base.mark_rule(color=NEUTRAL, strokeDash=dash, strokeWidth=1.5)
            mark: Any = {"color": NEUTRAL, "fontSize": 11, **side}
            x = alt.value(4 if side is left else "width")
            drawn.append(rule.encode(y=y, tooltip=["text:N", alt.Tooltip("value:Q", format=".3f")]))
            drawn.append(base.mark_text(**mark).encode(y=y, x=x, text="text:N"))
    if known.majority is not None:
        base = alt.Chart({"values": [{"value": known.majority, "text": BASELINES["majority"]}]})
        mark = base.mark_point(shape="triangle-right", filled=True, size=90, color=NEUTRAL)
        tooltip = ["text:N", alt.Tooltip("value:Q", format=".3f")]
        drawn.append(mark.encode(y=alt.Y("value:Q", title=None), x=alt.value(0), tooltip=tooltip))
    return drawn


def _value(point: Point, cost: str, served: Container[tuple[str, str]]) -> dict[str, Any]:
    spread = point.spread or 0.0
    # Vega makes a link to "/null" of None, and none of an empty text.
    link = point.link if (point.task, point.method) in served else ""
    return {
        "task": point.task,
        "method": point.method,
        "source": point.source,
        "metric": metric_words(point.metric),
        "value": point.value,
        "low": point.value - spread,
        "high": point.value + spread,
        "seeds": point.seeds,
        "cost": point.cost(cost),
        "train_rows": point.train_rows,
        "trained": "" if point.share is None else percent(point.share),
        "size": "" if point.size_bytes is None else human_bytes(point.size_bytes),
        "seconds": point.seconds,
        "origin": point.origin,
        "link": link,
    }


def _method_color(colors: Mapping[str, str]) -> alt.Color:
    return alt.Color(
        "method:N",
        scale=alt.Scale(domain=list(colors), range=list(colors.values())),
        legend=None,
    )


def _point_tooltip(cost: str) -> list[alt.Tooltip]:
    shown = [
        alt.Tooltip("method:N", title="Method"),
        alt.Tooltip("metric:N", title="Metric"),
        alt.Tooltip("value:Q", title="Mean", format=".4f"),
        alt.Tooltip("seeds:Q", title="Seeds"),
        alt.Tooltip("train_rows:Q", title="Train rows", format=","),
        alt.Tooltip("trained:N", title="Trained"),
        alt.Tooltip("size:N", title="Delta"),
        alt.Tooltip("origin:N", title="From"),
    ]
    if cost == "seconds":
        shown.insert(3, alt.Tooltip("seconds:Q", title="Seconds", format=",.0f"))
    return shown


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top")
