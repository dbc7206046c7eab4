"""The benchmark of every delta as totals, chart and table, and what is known about single deltas.

Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from frontend.glossary import human_bytes, literal, percent, task_words
from frontend.models import Backbone
from frontend.panels.charts import size_chart, strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.details import show_details
from frontend.panels.tables import (
    FORMATS,
    benchmark_csv,
    benchmark_records,
    sample_notes,
    study_records,
)
from frontend.state import ViewContext

_HIGHLIGHT = "background-color: rgba(76, 110, 245, 0.14)"


def show_trust(context: ViewContext) -> None:
    """Draw the facts of a task's deltas: reliability, history and manifest."""
    task = choose_task(context.catalogue)
    benchmark = context.catalogue.benchmark
    colors = strategy_colors([row.strategy for row in benchmark.rows])
    show_details(context.client, benchmark.of(task.name), task, colors)


def show_benchmark(context: ViewContext) -> None:
    """Draw totals, the chart of size against metric, the table of all deltas, and the study."""
    chosen, benchmark = choose_task(context.catalogue).name, context.catalogue.benchmark
    backbone, rows = benchmark.backbone, benchmark.rows
    total = sum(row.size_bytes for row in rows)
    for column, (label, value, note) in zip(
        st.columns(4),
        (
            ("Backbone", human_bytes(backbone.size_bytes), f"{backbone.parameters:,} parameters"),
            ("Deltas", str(len(rows)), f"{len({row.task for row in rows})} tasks"),
            ("All deltas together", human_bytes(total), _of_backbone(total, backbone)),
            ("Backbone copies avoided", *_copies(len(rows), total, backbone)),
        ),
        strict=True,
    ):
        column.metric(label, value, note, delta_color="off", delta_arrow="off", border=True)
    if not rows:
        return
    st.altair_chart(
        size_chart(rows, chosen, backbone.size_bytes),
        width="stretch",
        alt=f"Dev-set metric against size of the delta; {chosen} is highlighted",
    )
    records = benchmark_records(benchmark)
    st.dataframe(
        _highlighted(records, task_words(chosen).title),
        hide_index=True,
        width="stretch",
        height="content",
        alt="Benchmark of every delta",
    )
    left, right = st.columns([3, 1], vertical_alignment="center")
    left.caption(
        "Scores are measured once after training, on each task's development set; the manifest of "
        f"each delta has the details. Backbone: {literal(backbone.id)}, "
        f"fingerprint {backbone.fingerprint.rpartition(':')[2][:16]}.  \n"
        + "  \n".join(sample_notes(benchmark))
    )
    right.download_button(
        "Download CSV",
        benchmark_csv(benchmark),
        file_name="benchmark.csv",
        mime="text/csv",
        on_click="ignore",
        width="stretch",
    )
    if records := study_records(benchmark):
        st.subheader("Study", anchor=False)
        st.dataframe(
            pd.DataFrame(records),
            hide_index=True,
            width="stretch",
            height="content",
            alt="Mean and spread over seeds, by strategy and task",
        )
        st.caption(
            "Metric on each task's development set: mean ± standard deviation over the seeds "
            "(their number in brackets). Learning rates were chosen on held-out train rows. "
            "The whole study is in docs/results."
        )


def _of_backbone(size_bytes: int, backbone: Backbone) -> str:
    share = percent(size_bytes / backbone.size_bytes) if backbone.size_bytes else "n/a"
    return f"{share} of the backbone"


def _copies(num_deltas: int, total: int, backbone: Backbone) -> tuple[str, str]:
    copies = max(num_deltas - 1, 0)
    return human_bytes(max(copies * backbone.size_bytes - total, 0)), f"{copies} full copies"


def _highlighted(records: list[dict[str, object]], title: str) -> object:
    """Tint the rows of the chosen task."""

    def tint(record: pd.Series) -> list[str]:
        return [_HIGHLIGHT if record["Task"] == title else ""] * len(record)

    return pd.DataFrame(records).style.apply(tint, axis=1).format(FORMATS)
