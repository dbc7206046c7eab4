"""The benchmark's charts: what they show, in which colours, and what they highlight."""

from __future__ import annotations

from typing import Any

import altair as alt
import pytest

from frontend.models import Reliability
from frontend.panels.charts import (
    loss_chart,
    metric_chart,
    reliability_chart,
    strategy_colors,
)
from tests.factories import RELIABILITY, benchmark_history


def layers(chart: alt.LayerChart | alt.FacetChart) -> list[dict[str, Any]]:
    """The layers of the validated Vega-Lite specification, each with its own rows."""
    spec = chart.to_dict()
    found: list[dict[str, Any]] = spec["layer"]
    for layer in found:
        data = layer.get("data") or spec["data"]
        name = data.get("name")
        layer["rows"] = spec["datasets"][name] if name else data["values"]
    return found


def layer_of(chart: alt.LayerChart | alt.FacetChart, mark: str) -> dict[str, Any]:
    (found,) = [layer for layer in layers(chart) if layer["mark"]["type"] == mark]
    return found


def test_strategies_are_told_apart_by_colour() -> None:
    names = ["bitfit", "bitfit:query", "random:0.001", "random:0.01", "head", "bitfit+top:1", "odd"]
    colors = strategy_colors([*names, "bitfit"])
    assert list(colors) == names
    assert len(set(colors.values())) == len(names)
    assert all(strategy_colors([name, *names])[name] for name in names)


def test_more_strategies_than_colours_still_have_one_each() -> None:
    names = [f"params:{n}" for n in range(40)]
    assert list(strategy_colors(names)) == names


def test_every_bin_with_rows_is_a_point_beside_the_diagonal() -> None:
    chart = reliability_chart(Reliability(**RELIABILITY), "#4c6ef5")
    points = layer_of(chart, "circle")
    shown = [(each["probability"], each["share"], each["rows"]) for each in points["rows"]]
    assert shown == [(0.4, 0.5, 200), (0.62, 0.6, 600), (0.9, 0.87, 1200)]
    for axis in ("x", "y"):
        assert points["encoding"][axis]["scale"]["domain"] == [0.4, 1.0]
    assert [(end["probability"], end["share"]) for end in layer_of(chart, "line")["rows"]] == [
        (0.4, 0.4),
        (1.0, 1.0),
    ]


def test_the_loss_of_train_and_selection_rows_is_charted_by_step() -> None:
    line = layer_of(loss_chart(benchmark_history(), "#4c6ef5"), "line")
    shown = {(each["rows"], each["step"], each["loss"]) for each in line["rows"]}
    assert shown >= {("train rows", 100, 0.7), ("selection rows", 0, 0.7)}
    assert len(shown) == 7
    assert line["encoding"]["x"]["scale"]["domain"] == [0, 400]


def test_the_best_state_is_marked() -> None:
    chart = metric_chart(benchmark_history(), "matthews", "#4c6ef5")
    points = layer_of(chart, "circle")
    assert points["encoding"]["y"]["title"] == "Matthews correlation"
    assert [(each["step"], each["value"]) for each in points["rows"]] == [
        (0, 0.1),
        (200, 0.5),
        (400, 0.4),
    ]
    assert [each["step"] for each in layer_of(chart, "point")["rows"] if each["best"]] == [200]


def _luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#fbfbfd", "#13161c"])
def test_colours_stand_out_on_both_themes(background: str) -> None:
    known = ["bitfit", "layernorm", "random", "head", "full", "top", "attention", "ffn", "rows"]
    extra = [f"params:{n}" for n in range(7)]
    for name, color in strategy_colors([*known, *extra]).items():
        light, dark = sorted((_luminance(color), _luminance(background)), reverse=True)
        contrast = (light + 0.05) / (dark + 0.05)
        assert contrast >= 2.8, f"{name} {color} on {background}: {contrast:.2f}"
