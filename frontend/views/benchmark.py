"""The view Benchmark: what every method reaches and costs, each number with its source.

`frontend.reports.benchmark` arranges the numbers. Panels are few at a time, however many tasks
there are. Tested by `tests/browser/test_reports.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import streamlit as st

from frontend.errors import ServerError
from frontend.glossary import counted, human_bytes, literal, metric_words, percent, task_words
from frontend.links import opened, share
from frontend.models import Backbone, Benchmark, CurveRow
from frontend.panels.charts import loss_chart, metric_chart, strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.details import history_sentences
from frontend.panels.inputs import show_error
from frontend.panels.tables import FORMATS, benchmark_csv, benchmark_records, sample_notes
from frontend.reports.benchmark import (
    BASELINES,
    COSTS,
    MAX_TASKS,
    QUALITY,
    SERVED,
    STUDY,
    Point,
    all_points,
    beside_earlier,
    low_data,
    main_points,
    reference,
    tasks_of,
    usual_sources,
)
from frontend.reports.charts import cost_chart, learning_chart, low_data_chart
from frontend.state import ViewContext, load_delta

_SOURCES = (STUDY, QUALITY, SERVED)
_FEW_TASKS = 6  # shown at first
_PANELS_IN_A_ROW = 3
_MAX_TABLE_ROWS = 500
_MAX_METHODS = 24


def show_benchmark(context: ViewContext) -> None:
    """Draw the view."""
    benchmark = context.catalogue.benchmark
    _show_totals(benchmark)
    points = all_points(benchmark)
    if not points:
        st.info("No benchmark is recorded for any delta that is served here.")
        return
    colors = strategy_colors([point.method for point in points if not point.is_baseline])
    st.header("What a small delta costs, and what it reaches", anchor=False)
    first = choose_task(context.catalogue).name
    chosen, cost = _choose(points, first)
    if chosen:
        _show_legend(chosen, colors)
        _show_panels(points, chosen, cost, colors)
        st.caption(
            "Squares: study, triangles: quality benchmark, circles: served deltas. Bars: one "
            "standard deviation over the seeds. Grey steps: nothing cheaper is better. Solid line: "
            "full fine-tuning, dashed: scikit-learn, triangle at the left edge: the larger class. "
            "Click a point to open its delta, if it is served."
        )
        _show_points(chosen)
    else:
        st.info("Nothing fits these filters. Choose another task or source.")
    _show_curves(benchmark, chosen, colors)
    _show_low_data(points, colors)
    _show_history(context, colors)
    _show_earlier(benchmark, points)
    _show_table(benchmark)


def _show_totals(benchmark: Benchmark) -> None:
    backbone, rows = benchmark.backbone, benchmark.rows
    total = sum(row.size_bytes for row in rows)
    for column, (label, value, note) in zip(
        st.columns(4),
        (
            ("Backbone", human_bytes(backbone.size_bytes), f"{backbone.parameters:,} parameters"),
            ("Deltas", f"{len(rows):,}", counted(len({row.task for row in rows}), "task")),
            ("All deltas together", human_bytes(total), _of_backbone(total, backbone)),
            ("Backbone copies avoided", *_copies(len(rows), total, backbone)),
        ),
        strict=True,
    ):
        column.metric(label, value, note, delta_color="off", delta_arrow="off", border=True)


def _of_backbone(size_bytes: int, backbone: Backbone) -> str:
    share_of = percent(size_bytes / backbone.size_bytes) if backbone.size_bytes else "n/a"
    return f"{share_of} of the backbone"


def _copies(num_deltas: int, total: int, backbone: Backbone) -> tuple[str, str]:
    copies = max(num_deltas - 1, 0)
    return human_bytes(max(copies * backbone.size_bytes - total, 0)), f"{copies:,} full copies"


def _choose(points: Sequence[Point], task: str) -> tuple[list[Point], str]:
    """Draw the filters; return the points that pass them, and the cost to show them by.

    `task` is the chosen one of all views, whose panel is there at first.
    """
    first, second, third = st.columns([4, 3, 4], gap="medium")
    with second:
        present = [name for name in _SOURCES if any(point.source == name for point in points)]
        usual = usual_sources(points, present, task)
        sources = st.pills(
            "Sources",
            present,
            selection_mode="multi",
            default=usual,
            key=f"benchmark/sources/{','.join(usual)}",
            persist_state="session",
        )
    with third:
        wanted = opened("cost") if opened("cost") in COSTS else next(iter(COSTS))
        st.session_state.setdefault("benchmark/cost", wanted)
        cost = st.segmented_control(
            "Against",
            list(COSTS),
            required=True,
            format_func=COSTS.__getitem__,
            key="benchmark/cost",
            persist_state="session",
        )
        cost = cost or wanted
        share("cost", cost if cost != next(iter(COSTS)) else "")
    found = main_points(points, sources)
    tasks = tasks_of(found)
    few = [name for name in tasks if name == task]
    few += [name for name in tasks if name != task][: _FEW_TASKS - len(few)]
    with first:
        given = [name for name in opened("tasks").split(",") if name in tasks]
        chosen = st.multiselect(
            f"Panels ({counted(len(tasks), 'task')} to search, {MAX_TASKS} at a time)",
            tasks,
            default=given or few,
            max_selections=MAX_TASKS,
            format_func=lambda name: task_words(name).title,
            key=f"benchmark/tasks/{task}/{','.join(sources)}",
            persist_state="session",
        )
    share("tasks", ",".join(chosen) if chosen != few else "")
    return [point for point in found if point.task in chosen], cost


def _show_legend(points: Sequence[Point], colors: Mapping[str, str]) -> None:
    methods = [name for name in colors if any(point.method == name for point in points)]
    marks = "".join(
        f'<li><i style="background:{escape(colors[name])}"></i>{escape(name)}</li>'
        for name in methods[:_MAX_METHODS]
    )
    st.html(f'<ul class="db-legend" aria-label="Colors of the methods">{marks}</ul>')


def _show_panels(
    points: Sequence[Point], chosen: Sequence[Point], cost: str, colors: Mapping[str, str]
) -> None:
    """Draw a panel for each task and metric; those of one metric stand side by side."""
    panels = sorted(
        {(each.metric, each.task) for each in chosen}, key=lambda panel: (panel[0], panel[1])
    )
    known = main_points(points, _SOURCES)
    served = {(each.task, each.method) for each in points if each.version is not None}
    for start in range(0, len(panels), _PANELS_IN_A_ROW):
        columns = st.columns(_PANELS_IN_A_ROW, gap="medium")
        for column, (metric, task) in zip(columns, panels[start:], strict=False):
            mine = [each for each in chosen if (each.task, each.metric) == (task, metric)]
            with column:
                words = metric_words(metric)
                st.markdown(f"**{literal(task_words(task).title)}** :gray[{words}]")
                if not any(each.cost(cost) for each in mine if not each.is_baseline):
                    st.caption(f"{COSTS[cost]} was not measured here.")
                    continue
                st.altair_chart(
                    cost_chart(mine, cost, reference(known, task, metric), colors, served),
                    width="stretch",
                    alt=f"{words} of {task} against {COSTS[cost].lower()}",
                )


def _show_points(chosen: Sequence[Point]) -> None:
    st.markdown("**Every point.** Choose a row to see its delta, its run and its command.")
    ordered = sorted(chosen, key=lambda point: (point.task, -point.value))[:_MAX_TABLE_ROWS]
    table = pd.DataFrame(
        {
            "Task": [task_words(each.task).title for each in ordered],
            "Method": [BASELINES.get(each.method, each.method) for each in ordered],
            "Metric": [metric_words(each.metric) for each in ordered],
            "Mean": [each.value for each in ordered],
            "±": ["" if each.spread is None else f"{each.spread:.4f}" for each in ordered],
            "Seeds": [each.seeds for each in ordered],
            "Trained": ["" if each.share is None else percent(each.share) for each in ordered],
            "Delta": [human_bytes(each.size_bytes) if each.size_bytes else "" for each in ordered],
            "Seconds": [f"{each.seconds:,.0f}" if each.seconds else "" for each in ordered],
            "Train rows": [each.train_rows for each in ordered],
            "Source": [_source_text(each) for each in ordered],
        }
    )
    formats: Any = {"Mean": "{:.4f}", "Train rows": "{:,}"}
    state = st.dataframe(
        table.style.format(formats),
        hide_index=True,
        width="stretch",
        height=min(300, 38 + 35 * len(table)),
        key="benchmark/points",
        on_select="rerun",
        selection_mode="single-row",
        alt="Every point of the panels above",
    )
    rows = [row for row in state.selection.rows if row < len(ordered)]
    if rows:
        _show_point(ordered[rows[0]])


def _source_text(point: Point) -> str:
    return point.source if point.part == point.source else f"{point.source}, {point.part}"


def _show_point(point: Point) -> None:
    title = f"{task_words(point.task).title} · {BASELINES.get(point.method, point.method)}"
    with st.container(border=True):
        spread = "" if point.spread is None else f" ± {point.spread:.4f}"
        seeds = f"{point.seeds} seeds" if point.seeds != 1 else "1 seed"
        lines = [
            f"**{literal(title)}**: {metric_words(point.metric)} {point.value:.4f}{spread}, "
            f"{seeds}, {point.rows:,} dev rows, {point.train_rows:,} train rows.",
            f"Source: {_source_text(point)}, `{point.origin}`."
            + (f" Times: {literal(point.machine)}." if point.seconds and point.machine else ""),
        ]
        st.markdown("  \n".join(lines))
        if point.version is not None:
            st.markdown(f"[Open this delta]({point.link})")
        if point.command:
            st.caption("The command that makes this number again:")
            st.code(point.command, language="bash", wrap_lines=True)


def _show_low_data(points: Sequence[Point], colors: Mapping[str, str]) -> None:
    curves = low_data(points)
    if not curves:
        return
    st.header("With few rows", anchor=False)
    columns = st.columns(max(2, min(_PANELS_IN_A_ROW, len(curves))), gap="medium")
    for column, (task, found) in zip(columns, curves.items(), strict=False):
        with column:
            st.markdown(f"**{literal(task_words(task).title)}**")
            words = metric_words(found[0].metric)
            st.altair_chart(
                low_data_chart(found, colors, words),
                width="stretch",
                alt=f"{words} of {task} by number of train rows",
            )
    first = next(iter(curves.values()))[0]
    _show_legend([each for found in curves.values() for each in found], colors)
    st.caption(
        f"Means over {first.seeds} seeds with one standard deviation. Source: study, part "
        f"low-data, `{first.origin}`."
    )


def _show_curves(benchmark: Benchmark, chosen: Sequence[Point], colors: Mapping[str, str]) -> None:
    """Draw the study's learning curves of the tasks in the panels."""
    measured = benchmark.measured
    tasks = {point.task for point in chosen}
    by_task: dict[str, list[CurveRow]] = {}
    for row in measured.curves:
        if row.task in tasks:
            by_task.setdefault(row.task, []).append(row)
    if not by_task:
        return
    st.header("How fast it learns", anchor=False)
    names = sorted(by_task)
    for start in range(0, len(names), _PANELS_IN_A_ROW):
        columns = st.columns(_PANELS_IN_A_ROW, gap="medium")
        for column, task in zip(columns, names[start:], strict=False):
            with column:
                st.markdown(f"**{literal(task_words(task).title)}**")
                words = metric_words(by_task[task][0].metric)
                st.altair_chart(
                    learning_chart(by_task[task], colors),
                    width="stretch",
                    alt=f"{words} of {task} on the selection rows by step",
                )
    st.caption(
        "Medians over the seeds on the selection rows, between the lowest and the highest seed; "
        f"learning rates as chosen. Source: study, part main, `{measured.curves_source}`."
    )


def _show_history(context: ViewContext, colors: Mapping[str, str]) -> None:
    rows = context.catalogue.benchmark.rows
    if not rows:
        return
    st.header("How a run went", anchor=False)
    tasks = list(dict.fromkeys(row.task for row in rows))
    left, right = st.columns(2)
    task = left.selectbox(
        "Task of the run",
        tasks,
        format_func=lambda name: task_words(name).title,
        key="benchmark/history/task",
        persist_state="session",
    )
    strategies = list(dict.fromkeys(row.strategy for row in rows if row.task == task))
    strategy = right.selectbox(
        "Strategy of the run", strategies, key=f"benchmark/history/{task}", persist_state="session"
    )
    try:
        details = load_delta(context.client.url, context.client, task, strategy)
        history = details.history
    except ServerError as error:
        show_error(error)
        return
    if history is None:
        st.caption(
            "The manifest of this delta has no history: it was made by an earlier release, or its "
            "head was solved without steps."
        )
        return
    row = next(each for each in rows if (each.task, each.strategy) == (task, strategy))
    color = colors.get(strategy, "gray")
    said = history_sentences(history, row.metric)
    left, right = st.columns(2, gap="medium")
    left.altair_chart(loss_chart(history, color), width="stretch", alt=said)
    if history.selection.step:
        words = f"{metric_words(row.metric)} of the selection rows by step"
        chart = metric_chart(history, row.metric, color)
        right.altair_chart(chart, width="stretch", alt=words)
    st.caption(f"{said} Source: manifest of version {details.version}.")


def _show_earlier(benchmark: Benchmark, points: Sequence[Point]) -> None:
    found = beside_earlier(benchmark, points)
    if not found:
        return
    st.header("Beside the earlier study", anchor=False)
    table = pd.DataFrame(
        {
            "Task": [task_words(each.task).title for each in found],
            "Strategy": [each.strategy for each in found],
            "Earlier study": [_mean(each.earlier, each.earlier_spread) for each in found],
            "Its best rate": [f"{each.earlier_rate:g}" for each in found],
            "This study": [_mean(each.ours, each.ours_spread) for each in found],
        }
    )
    st.dataframe(
        table, hide_index=True, width="stretch", height=300, alt="The earlier study and this one"
    )
    st.caption(
        f"The earlier study trained bert-base-cased, 108 million parameters; this one trains "
        f"{literal(benchmark.backbone.id)}, {benchmark.backbone.parameters:,}. Metric: Matthews "
        f"correlation on CoLA, accuracy elsewhere. Sources: "
        f"`{benchmark.measured.earlier_source}`; study, part main."
    )


def _mean(value: float | None, spread: float | None) -> str:
    if value is None:
        return "not run"
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def _show_table(benchmark: Benchmark) -> None:
    rows = benchmark.rows
    if not rows:
        return
    st.header("Every served delta", anchor=False)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    query = left.text_input(
        "Search", key="benchmark/search", placeholder="Task or strategy", persist_state="session"
    )
    # With thousands of deltas, writing the file takes a second: then it is written on a click.
    many = len(rows) > _MAX_TABLE_ROWS
    right.download_button(
        "Download CSV",
        (lambda: benchmark_csv(benchmark)) if many else benchmark_csv(benchmark),
        file_name="benchmark.csv",
        mime="text/csv",
        on_click="ignore",
        width="stretch",
    )
    records = [
        record
        for record, row in zip(benchmark_records(benchmark), rows, strict=True)
        if query.casefold() in f"{row.task} {record['Task']} {row.strategy}".casefold()
    ]
    _show_records(records)
    cut = len(records) - _MAX_TABLE_ROWS
    more = f" The first {_MAX_TABLE_ROWS} of {len(records):,} are shown." if cut > 0 else ""
    notes = sample_notes(benchmark) if len(rows) <= _MAX_TABLE_ROWS else []
    st.caption(
        "Scores are measured once after training, on each task's development set; the manifest of "
        f"each delta has the details. Backbone: {literal(benchmark.backbone.id)}, fingerprint "
        f"{benchmark.backbone.fingerprint.rpartition(':')[2][:16]}.{more}  \n" + "  \n".join(notes)
    )


def _show_records(records: Sequence[Mapping[str, object]]) -> None:
    if not records:
        st.caption("No delta has this in its name.")
        return
    st.dataframe(
        pd.DataFrame(records[:_MAX_TABLE_ROWS]).style.format(FORMATS),
        hide_index=True,
        width="stretch",
        height="content" if len(records) <= 12 else 460,
        alt="Benchmark of every delta",
    )
