"""The panel of one delta: facts of its training, reliability, history of the run, manifest.

Reliability and history are drawn only where the manifest has them.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from frontend.client import Client
from frontend.errors import ServerError
from frontend.glossary import literal, metric_words, percent, probability
from frontend.models import BenchmarkRow, DeltaDetails, Reliability, RunHistory, TaskInfo
from frontend.panels.charts import loss_chart, metric_chart, reliability_chart
from frontend.panels.inputs import show_error
from frontend.panels.tables import other_metrics
from frontend.state import load_delta


def show_details(
    client: Client, rows: Sequence[BenchmarkRow], task: TaskInfo, colors: Mapping[str, str]
) -> None:
    """Draw an expander with the facts of one of a task's deltas; open if a delta has a diagram.

    `rows` are those of the task, `colors` those of all strategies.
    """
    has_diagram = any(row.metrics.get(row.split, {}).get("reliability") for row in rows)
    with st.expander("Training facts and manifest", expanded=has_diagram):
        strategy = st.selectbox("Delta", task.strategies, key=f"details/{task.name}")
        try:
            details = load_delta(client.url, client, task.name, strategy)
            row = next((item for item in rows if item.version == details.version), None)
            if row is not None:
                st.markdown("\n".join(f"- {name}: {value}" for name, value in delta_facts(row)))
                _show_reliability(details, row, task, colors[row.strategy])
                _show_history(details, row, colors[row.strategy])
        except ServerError as error:
            show_error(error)
            return
        st.caption(f"Manifest of version {details.version}, {details.size_bytes:,} bytes")
        st.json(dict(details.manifest), expanded=1)


def reliability_sentences(found: Reliability, kind: str, rows: str) -> str:
    """Say with numbers how far the probabilities are right; `rows` names the rows."""
    answers = "labels" if kind == "multi_label" else "answers"
    bins = list(zip(found.counts, found.probability, found.share, strict=True))
    likely = [each for each in bins if each[0] and each[1] >= 0.5]
    count, stated, right = max(likely or bins)
    before = found.error_before
    changed = f" ({before:.3f} before calibration)" if before != found.error else ""
    return (
        f"Of {count:,} {answers} with a probability of about {probability(stated)}, "
        f"{probability(right)} were right. Expected calibration error on {rows}: "
        f"{found.error:.3f}{changed}. On the dashed line probabilities and shares are equal; the "
        f"larger a point, the more {answers} it stands for."
    )


def history_sentences(history: RunHistory, metric: str) -> str:
    """Say with numbers how the loss changed, and which state was kept."""
    train, selection = history.train, history.selection
    said = (
        f"The loss of the train rows went from {train.loss[0]:.3f} to {train.loss[-1]:.3f} in "
        f"{train.step[-1]:,} steps."
    )
    if selection.best is None:
        return said
    step = selection.step[selection.best]
    score = f"{metric_words(metric)} {selection.metric[selection.best]:.3f} on the selection rows"
    if step == 0:
        return f"{said} No step improved on the starting head, which was kept: {score}."
    return f"{said} The state after step {step:,} was kept: {score}."


def _show_reliability(details: DeltaDetails, row: BenchmarkRow, task: TaskInfo, color: str) -> None:
    found = details.reliability(row.split)
    if found is None:
        return
    st.markdown("**Are its probabilities right?**")
    rows = f"{row.split_rows:,} rows of {literal(row.split)}"
    said = reliability_sentences(found, task.kind, rows)
    st.altair_chart(reliability_chart(found, color), width="stretch", alt=said)
    st.caption(said)


def _show_history(details: DeltaDetails, row: BenchmarkRow, color: str) -> None:
    history = details.history
    if history is None:
        return
    st.markdown("**History of the run**")
    said = history_sentences(history, row.metric)
    st.altair_chart(loss_chart(history, color), width="stretch", alt=said)
    if history.selection.step:
        metric = metric_words(row.metric)
        alt = f"{metric} of the selection rows by step"
        st.altair_chart(metric_chart(history, row.metric, color), width="stretch", alt=alt)
    st.caption(said)


def delta_facts(row: BenchmarkRow) -> list[tuple[str, str]]:
    """Return the names and values of the facts to list."""
    dev = f"{row.split_rows:,} rows of {literal(row.split)}" + _in_brackets(row.split_note)
    more = other_metrics(row)
    return [
        (literal(metric_words(row.metric)), f"{row.value:.4f}, on {dev}"),
        *([("Also measured", literal(more))] if more else []),
        ("Trained on", f"{row.train_rows:,} rows" + _in_brackets(row.train_note)),
        ("Trained", f"{row.trainable_parameters:,} parameters, {percent(row.trained_share)}"),
        _training(row),
    ]


def _training(row: BenchmarkRow) -> tuple[str, str]:
    if not row.epochs:
        return "Head", f"solved without steps, seed {row.seed}"
    return "Learning rate", f"{row.learning_rate:g}, {row.epochs:.3g} epochs, seed {row.seed}"


def _in_brackets(note: str) -> str:
    return f" ({literal(note)})" if note else ""
