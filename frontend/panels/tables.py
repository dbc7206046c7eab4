"""The benchmark as tables: records for the page and a CSV file to download."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pandas as pd

from frontend.glossary import human_bytes, literal, metric_words, percent, task_words
from frontend.models import Benchmark, BenchmarkRow

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
FORMATS: dict[str, Any] = {
    "Value": "{:.4f}",
    "Delta": lambda count: human_bytes(int(count)),
    "of backbone": percent,
    "Trained": percent,
    "Learning rate": "{:g}",
    "Epochs": "{:.3g}",
    "Train rows": "{:,}",
    "Dev rows": "{:,}",
}


def benchmark_records(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Return one record per delta: raw numbers under the headings of the page's table."""
    return [
        {
            "Task": task_words(row.task).title,
            "Strategy": row.strategy,
            "Metric": metric_words(row.metric),
            "Value": row.value,
            "Delta": row.size_bytes,
            "of backbone": row.size_bytes / max(benchmark.backbone.size_bytes, 1),
            "Trained": row.trained_share,
            "Learning rate": row.learning_rate,
            "Epochs": row.epochs,
            "Seed": row.seed,
            "Train rows": row.train_rows,
            "Dev rows": row.split_rows,
            "Also measured": other_metrics(row),
            "Note": row.train_note,
        }
        for row in benchmark.rows
    ]


def benchmark_csv(benchmark: Benchmark) -> str:
    """Return every row with raw numbers as CSV, under the API's field names."""
    columns = [field.name for field in fields(BenchmarkRow) if field.name != "metrics"]
    columns.insert(columns.index("size_bytes") + 1, "share_of_backbone")
    table = pd.DataFrame([vars(row) for row in benchmark.rows], columns=columns)
    table["share_of_backbone"] = table["size_bytes"] / max(benchmark.backbone.size_bytes, 1)
    texts = table.select_dtypes(exclude="number").columns
    table[texts] = table[texts].map(_spreadsheet_safe)
    # With this end of a line, a lone carriage return in a text is quoted, too.
    return table.to_csv(index=False, lineterminator="\r\n")


def _spreadsheet_safe(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe marks a text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def other_metrics(row: BenchmarkRow) -> str:
    """List the metrics besides the primary one, and the metrics of further dev splits.

    The expected calibration error is one of them, if it is known.
    """
    found = []
    for split, measured in row.metrics.items():
        if split == "selection":
            continue
        values = dict(measured.get("values", {}))
        if reliability := measured.get("reliability"):
            values["expected_calibration_error"] = reliability["error"]
        for name, value in values.items():
            if (split, name) != (row.split, row.metric):
                where = "" if split == row.split else f" ({split.removeprefix('validation_')})"
                found.append(f"{metric_words(name)}{where} {value:.3f}")
    return ", ".join(found)


def sample_notes(benchmark: Benchmark) -> list[str]:
    """Return one sentence per kind of sampled train set, with the names of its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for row in benchmark.rows:
        if row.train_note:
            tasks.setdefault(row.train_note, {})[task_words(row.task).title] = None
    return [f"{literal(', '.join(names))}: {literal(note)}." for note, names in tasks.items()]
