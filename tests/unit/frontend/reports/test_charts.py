"""The charts of the reports hold the numbers that they were given, in valid Vega-Lite."""

from __future__ import annotations

from typing import Any

from frontend.models import CurveRow, Reliability
from frontend.reports.benchmark import Reference
from frontend.reports.charts import (
    calibration_chart,
    cost_chart,
    learning_chart,
    low_data_chart,
    risk_chart,
    traffic_chart,
    value_chart,
)
from frontend.reports.trust import RiskCurve
from tests.unit.frontend.reports.test_benchmark import point

COLORS = {"head": "#868e96", "bitfit": "#4c6ef5", "full": "#be4bdb"}
KNOWN = Reliability(0.1, 0.2, (0, 30, 10), (0.0, 0.6, 0.9), (0.0, 0.5, 1.0))


def spec(chart: Any) -> dict[str, Any]:
    made: dict[str, Any] = chart.to_dict()  # Altair checks it against the schema
    return made


def values(chart: Any) -> list[list[dict[str, Any]]]:
    """The rows of each data set of a chart."""
    made = spec(chart)
    found = list(made.get("datasets", {}).values())
    layers = [made, *made.get("layer", [])]
    return found + [each["data"]["values"] for each in layers if "values" in each.get("data", {})]


def marks(chart: Any) -> list[str]:
    return [each["mark"]["type"] for each in spec(chart)["layer"]]


def test_calibration_has_a_point_for_each_filled_bin_of_each_head() -> None:
    both = [rows for rows in values(calibration_chart(KNOWN, KNOWN)) if "head" in rows[0]]
    assert all(len(rows) == 4 for rows in both)
    alone = [rows for rows in values(calibration_chart(KNOWN, None)) if "head" in rows[0]]
    assert all({each["head"] for each in rows} == {"calibrated"} for rows in alone)


def test_risk_is_drawn_over_coverage() -> None:
    curve = RiskCurve((0.5, 1.0), (0.1, 0.2), (0.9, 0.6), 0.15)
    rows = values(risk_chart(curve))[0]
    assert rows[1] == {"coverage": 1.0, "risk": 0.2, "limit": 0.6}


def test_values_lie_around_a_diagonal_of_their_range() -> None:
    ends = min(values(value_chart([0.0, 5.0], [1.0, 6.0], [1, 2])), key=lambda rows: len(rows[0]))
    assert ends == [{"gold": 0.0, "decided": 0.0}, {"gold": 6.0, "decided": 6.0}]


def test_points_have_their_spreads_and_references_are_lines_and_a_mark() -> None:
    points = [
        point("head", 0.5, 0.001, spread=0.1, seeds=3),
        point("bitfit", 0.7, 0.01),
        point("majority", 0.3, None),
    ]
    chart = cost_chart(points, "share", Reference(0.8, 0.6, 0.3), COLORS)
    assert sorted(marks(chart)) == [
        "line", "point", "point", "rule", "rule", "rule", "text", "text"
    ]  # fmt: skip
    rows = next(rows for rows in values(chart) if len(rows) == 2 and "low" in rows[0])
    assert (round(rows[0]["low"], 6), round(rows[0]["high"], 6)) == (0.4, 0.6)
    assert {each["method"] for each in rows} == {"head", "bitfit"}, "no cost, no point"
    assert all(each["link"] == "" for each in rows), "Vega would link None to /null"
    linked = cost_chart(points, "share", Reference(None, None, None), COLORS, {("cola", "head")})
    drawn = [each for rows in values(linked) for each in rows if each.get("link")]
    assert {(each["method"], each["link"]) for each in drawn} == {
        ("head", "deltas?task=cola&strategy=head")
    }
    assert "'href': {'field': 'link', 'type': 'nominal'}" in str(spec(linked))
    without = cost_chart(points, "share", Reference(None, None, None), COLORS)
    assert sorted(marks(without)) == ["line", "point", "rule"]


def test_a_lone_score_has_an_axis_that_can_be_read() -> None:
    """Vega's own axis had one mark, with all decimals of the score."""
    nothing = Reference(None, None, None)
    assert "'domain': [0.91, 1.01]" in str(
        spec(cost_chart([point("head", 0.963636)], "share", nothing, COLORS))
    )
    two = [point("head", 0.963636), point("bitfit", 0.9)]
    assert "'domain': [0.91" not in str(spec(cost_chart(two, "share", nothing, COLORS)))


def test_learning_curves_are_medians_in_their_ranges() -> None:
    row = CurveRow(
        "cola", "head", "matthews", 3, 0.03, (10, 20), (0.1, 0.3), (0.0, 0.2), (0.2, 0.4)
    )
    chart = learning_chart([row], COLORS)
    assert marks(chart) == ["area", "line", "circle"]
    last = {"method": "head", "step": 20, "value": 0.3, "low": 0.2, "high": 0.4}
    assert values(chart)[0][-1] == last


def test_few_rows_and_traffic() -> None:
    points = [point("head", 0.1, train_rows=100), point("head", 0.3, train_rows=1000)]
    rows = values(low_data_chart(points, COLORS, "Accuracy"))[0]
    assert [each["train_rows"] for each in rows] == [100, 1000]
    chart = traffic_chart([{"age": 0.0, "value": 0.0}], "Rows", "#4c6ef5")
    text = str(spec(chart))
    assert "'domain': [0, 1.0]" in text, "an idle server has an axis, too"
