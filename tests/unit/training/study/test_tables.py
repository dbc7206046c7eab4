"""Layers: which ones a strategy trains, and the table of one layer beside all others."""

from __future__ import annotations

import pytest

from tests.unit.training.study.test_aggregates import run_of
from training.study.aggregates import make_cells
from training.study.tables import csv_text, layers_of, layers_table


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("bitfit@2", {2}),
        ("bitfit@0-4", {0, 1, 2, 3, 4}),
        ("bitfit@0-1+bitfit@3-5", {0, 1, 3, 4, 5}),
        ("bitfit:query@10-11", {10, 11}),
    ],
)
def test_layers_are_read_from_the_name(method: str, layers: set[int]) -> None:
    assert layers_of(method) == (method.partition("@")[0], frozenset(layers))


@pytest.mark.parametrize(
    "method", ["bitfit", "bitfit@0+layernorm@1", "bitfit@0+head", "initbias+bitfit@0"]
)
def test_other_methods_are_no_single_rule_on_layers(method: str) -> None:
    assert layers_of(method) == (None, frozenset())


def test_a_layer_stands_beside_all_other_layers_and_missing_cells_are_empty() -> None:
    runs = [
        run_of(method, score)
        for method, score in (
            ("bitfit@0", 0.1),
            ("bitfit@1-2", 0.2),
            ("bitfit@2", 0.3),
            ("bitfit@0+bitfit@2", 0.4),
        )
    ]
    table = layers_table(make_cells(runs), make_cells([run_of("bitfit", 0.5)]))
    assert table.splitlines() == [
        "| layer | rte (accuracy), this layer alone | rte (accuracy), all others |",
        "| --- | ---: | ---: |",
        "| 0 | 0.100 (1) | 0.200 (1) |",
        "| 1 |  | 0.400 (1) |",
        "| 2 | 0.300 (1) |  |",
        "| all (`bitfit`) | 0.500 (1) | 0.500 (1) |",
    ]


def test_no_cell_of_a_csv_is_a_formula() -> None:
    text = csv_text([{"note": "=1+1", "value": -0.5}, {"note": "@x\r=1", "value": 2}])
    assert text == "note,value\n'=1+1,-0.5\n'@x\\r=1,2\n"
    records = [{"scores": "-0.0163 0.2"}, {"scores": "-1+1"}]
    assert csv_text(records) == "scores\n-0.0163 0.2\n'-1+1\n"
