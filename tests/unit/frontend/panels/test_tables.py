"""The full benchmark table and its CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pandas as pd

from frontend.glossary import literal
from frontend.models import Backbone, Benchmark
from frontend.panels.tables import (
    FORMATS,
    benchmark_csv,
    benchmark_records,
    other_metrics,
    sample_notes,
)
from tests.factories import RELIABILITY, benchmark_row

SAMPLE = "sample of the GLUE train set: 19,190 of 392,702 rows"
MNLI = benchmark_row(
    task="mnli",
    metric="accuracy",
    value=0.7123456,
    split="validation_matched",
    split_rows=9815,
    metrics={
        "selection": {"rows": 900, "values": {"accuracy": 0.75}, "note": ""},
        "validation_matched": {"rows": 9815, "values": {"accuracy": 0.7123456}, "note": ""},
        "validation_mismatched": {"rows": 1000, "values": {"accuracy": 0.7}, "note": ""},
    },
    trainable_parameters=50_000,
    train_rows=19_190,
    train_note=SAMPLE,
    epochs=2.5,
    seed=3,
)
MRPC = replace(
    MNLI,
    task="mrpc",
    split="validation",
    metrics={"validation": {"values": {"accuracy": 0.8, "f1": 0.9}}},
    train_note="",
)
BENCHMARK = Benchmark(Backbone("a backbone", "f" * 64, 22_713_216, 91_000_000), (MNLI, MRPC))


def test_records_have_metric_rows_and_training_facts() -> None:
    first, second = benchmark_records(BENCHMARK)
    assert (first["Task"], first["Metric"], first["Value"]) == ("MNLI", "Accuracy", 0.7123456)
    assert (first["Train rows"], first["Note"]) == (19_190, SAMPLE)
    assert (first["Learning rate"], first["Seed"]) == (0.001, 3)
    assert second["Note"] == ""


def test_numbers_stay_numbers_and_are_written_short() -> None:
    records = benchmark_records(BENCHMARK)
    assert set(FORMATS) <= set(records[0])
    html = pd.DataFrame(records).style.format(FORMATS).to_html()
    for text in ("0.7123", "102 KB", "0.11 %", "0.22 %", "0.001", "2.5", "19,190"):
        assert f">{text}<" in html, text


def test_further_metrics_and_splits_are_named() -> None:
    assert other_metrics(MNLI) == "Accuracy (mismatched) 0.700"
    assert other_metrics(MRPC) == "F1 0.900"
    assert other_metrics(replace(MNLI, metrics={})) == ""


def test_the_calibration_error_is_a_further_metric() -> None:
    split = {"rows": 2000, "values": {"accuracy": 0.5}, "reliability": RELIABILITY}
    row = replace(MNLI, metrics={MNLI.split: split, "selection": split})
    assert other_metrics(row).endswith("Expected calibration error 0.041")
    none = {**split, "reliability": None}
    assert "calibration" not in other_metrics(replace(MNLI, metrics={MNLI.split: none}))


def test_sampled_train_sets_are_named_once_with_their_tasks() -> None:
    twice = replace(BENCHMARK, rows=(MNLI, replace(MNLI, strategy="head"), MRPC))
    assert sample_notes(twice) == [f"MNLI: {literal(SAMPLE)}."]


def test_the_csv_has_every_row_with_raw_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(benchmark_csv(BENCHMARK))))
    assert [row["task"] for row in rows] == ["mnli", "mrpc"]
    assert rows[0]["value"] == "0.7123456"
    assert rows[0]["size_bytes"] == "102400"
    assert float(rows[0]["share_of_backbone"]) == 102_400 / 91_000_000
    assert rows[0]["train_note"] == SAMPLE
    assert rows[0]["learning_rate"] == "0.001"


def test_an_empty_benchmark_is_a_header() -> None:
    empty = replace(BENCHMARK, rows=())
    assert benchmark_records(empty) == []
    assert benchmark_csv(empty).count("\n") == 1


def test_no_cell_of_the_csv_is_a_formula() -> None:
    """A spreadsheet computes cells that begin so, and may send what it reads."""
    starts = ("=", "+", "-", "@", "\t", "\r")
    notes = [f"{start}HYPERLINK(1)" for start in starts]
    rows = tuple(replace(MNLI, train_note=note, value=-0.5) for note in notes)
    text = benchmark_csv(replace(BENCHMARK, rows=rows))
    cells = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["train_note"] for row in cells] == [f"'{note}" for note in notes]
    assert {row["value"] for row in cells} == {"-0.5"}
