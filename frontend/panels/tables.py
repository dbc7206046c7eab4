"""The benchmark as a table: columns for the page, a CSV for everyone else. Pure functions."""

from __future__ import annotations

import csv
import io
from typing import Any

from frontend.glossary import human_bytes, literal, metric_words, percent, task_words
from frontend.models import Benchmark, BenchmarkRow

_CSV_COLUMNS = (
    "task",
    "strategy",
    "version",
    "metric",
    "value",
    "split",
    "split_rows",
    "split_note",
    "size_bytes",
    "share_of_backbone",
    "trainable_parameters",
    "trained_share",
    "train_rows",
    "train_note",
    "learning_rate",
    "epochs",
    "seed",
    "data",
)


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
    """One record a delta, raw numbers under the headings of the page's table."""
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
    """Every row with raw numbers, under the API's own field names."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=_CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in benchmark.rows:
        record = {name: getattr(row, name) for name in _CSV_COLUMNS if hasattr(row, name)}
        record["share_of_backbone"] = row.size_bytes / max(benchmark.backbone.size_bytes, 1)
        writer.writerow(record)
    return buffer.getvalue()


def study_records(benchmark: Benchmark) -> list[dict[str, str]]:
    """The study's main part: one record a strategy, one column a task."""
    records: dict[str, dict[str, str]] = {}
    rows = [row for row in benchmark.study if row.part == "main"]
    for row in rows:
        spread = "" if row.spread is None else f" ± {row.spread:.3f}"
        record = records.setdefault(row.strategy, {"Strategy": row.strategy})
        record.setdefault("Trained", percent(row.trained_share))
        record[task_words(row.task).title] = f"{row.mean:.3f}{spread} ({row.seeds})"
    titles = dict.fromkeys(task_words(row.task).title for row in rows)
    return [dict.fromkeys(titles, "") | record for record in records.values()]


def other_metrics(row: BenchmarkRow) -> str:
    """What was measured besides the primary metric: further metrics, further dev splits."""
    found = []
    for split, measured in row.metrics.items():
        if split == "selection":
            continue
        for name, value in measured.get("values", {}).items():
            if (split, name) != (row.split, row.metric):
                where = "" if split == row.split else f" ({split.removeprefix('validation_')})"
                found.append(f"{metric_words(name)}{where} {value:.3f}")
    return ", ".join(found)


def sample_notes(benchmark: Benchmark) -> list[str]:
    """One sentence for each way in which a train set isn't the whole one, with its tasks."""
    tasks: dict[str, dict[str, None]] = {}
    for row in benchmark.rows:
        if row.train_note:
            tasks.setdefault(row.train_note, {})[task_words(row.task).title] = None
    return [f"{literal(', '.join(names))}: {literal(note)}." for note, names in tasks.items()]
