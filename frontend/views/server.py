"""The view Server: the work of the server now, from its metrics, read every two seconds.

`frontend.reports.live` turns two reads into rates. The session keeps the last minutes.
Tested by `tests/browser/test_reports.py`.
"""

from __future__ import annotations

import time
from collections import deque

import pandas as pd
import streamlit as st

from frontend.client import Client
from frontend.errors import ServerError
from frontend.glossary import human_bytes, literal, milliseconds, percent, task_words
from frontend.models import Backbone
from frontend.panels.inputs import show_error
from frontend.reports.charts import BLUE, GREEN, traffic_chart
from frontend.reports.live import Activity, Reading, activity
from frontend.state import ViewContext

_EVERY_S = 2.0
_KEPT = 90  # readings: three minutes
_SHORTEST_S = 0.5  # between two readings; a click reruns the page, too
_OVER_S = 10.0  # latencies and batches are of the last seconds, as one reading may have few
_READINGS = "server/readings"
_UNKNOWN = "n/a"
_MAX_PAIRS = 4


def show_server(context: ViewContext) -> None:
    """Draw the view; its numbers renew themselves."""
    st.header("The server now", anchor=False)
    backbone = context.catalogue.benchmark.backbone
    st.fragment(_show_live, run_every=_EVERY_S)(context.client, backbone)


def _show_live(client: Client, backbone: Backbone) -> None:
    try:
        readings = _read(client)
    except ServerError as error:
        if error.status is None:
            st.warning("The server does not answer; its numbers come back when it does.")
        else:
            show_error(error)
        return
    last = readings[-1]
    recent = next((each for each in readings if last.at - each.at <= _OVER_S), last)
    now = activity(recent, last)
    _show_numbers(now, last)
    if now is None:
        st.caption("Rates need a second reading, which comes in two seconds.")
    _show_curves(readings)
    left, right = st.columns(2, gap="large")
    with left:
        _show_busy(now, last)
    with right:
        _show_memory(last, backbone)
    build = last.labels("deltabert_build_info")
    facts = ", ".join(f"{name} {value}" for name, value in build.items() if name != "fingerprint")
    st.caption(
        f"Source: `{client.url}/metrics`, read every {_EVERY_S:g} s; rates and "
        f"quantiles are of the last {_OVER_S:g} s. {literal(facts)}"
    )


def _read(client: Client) -> deque[Reading]:
    """Read the metrics, unless they were read a moment ago; return the last readings."""
    kept = st.session_state.get(_READINGS)
    if kept is None or kept[0] != client.url:
        kept = (client.url, deque(maxlen=_KEPT))
        st.session_state[_READINGS] = kept
    readings: deque[Reading] = kept[1]
    if not readings or time.monotonic() - readings[-1].at >= _SHORTEST_S:
        text = client.metrics()
        readings.append(Reading.of(text, time.monotonic()))
    return readings


def _show_numbers(now: Activity | None, last: Reading) -> None:
    waiting, oldest = (
        last.value(f"deltabert_queue_{name}") or 0.0 for name in ("rows", "oldest_seconds")
    )
    fill = now.batch_fill if now else None
    rows = now.batch_rows if now else None
    requests = "of a request" if now and now.requests_per_s else "no requests lately"
    shown = (
        ("Rows", f"{now.rows_per_s:,.1f} /s" if now else _UNKNOWN, "answered"),
        ("Tokens", f"{now.tokens_per_s:,.0f} /s" if now else _UNKNOWN, "of these rows"),
        ("Median", _duration(now.p50_s if now else None), requests),
        ("p99", _duration(now.p99_s if now else None), requests),
        ("Queue", f"{waiting:,.0f} rows", f"oldest {milliseconds(1000 * oldest)}"),
        (
            "Batch fill",
            _UNKNOWN if fill is None else percent(fill),
            "no batches lately" if rows is None else f"{rows:.1f} rows a batch",
        ),
    )
    with st.container(horizontal=True, key="live-numbers"):
        for label, value, note in shown:
            st.metric(
                label,
                value,
                note,
                delta_color="off",
                delta_arrow="off",
                border=True,
            )
    if now and now.errors_per_s:
        st.caption(f":orange[{now.errors_per_s:,.1f} requests a second end in an error.]")


def _show_curves(readings: deque[Reading]) -> None:
    """Draw rows and tokens per second over the readings that are kept."""
    pairs = zip(list(readings), list(readings)[1:], strict=False)
    found = [(readings[-1].at - after.at, activity(before, after)) for before, after in pairs]
    for column, title, color, name in zip(
        st.columns(2, gap="large"),
        ("Rows per second", "Tokens per second"),
        (BLUE, GREEN),
        ("rows_per_s", "tokens_per_s"),
        strict=True,
    ):
        values = [
            {"age": round(age, 1), "value": getattr(each, name)} for age, each in found if each
        ]
        column.altair_chart(
            traffic_chart(values, title, color), width="stretch", alt=f"{title}, lately"
        )


def _show_busy(now: Activity | None, last: Reading) -> None:
    st.subheader("Tasks that share the batches", anchor=False)
    if now is None or not now.busy:
        st.caption("No rows were answered in the last seconds.")
        return
    table = pd.DataFrame(
        {
            "Task": [task_words(each.task).title for each in now.busy],
            "Strategy": [each.strategy for each in now.busy],
            "Rows/s": [each.rows_per_s for each in now.busy],
            "Tokens/s": [each.tokens_per_s for each in now.busy],
        }
    )
    st.dataframe(
        table.style.format({"Rows/s": "{:,.1f}", "Tokens/s": "{:,.0f}"}),
        hide_index=True,
        width="stretch",
        alt="Deltas that answered rows in the last seconds, the busiest first",
    )
    tasks = len({each.task for each in now.busy})
    more = f" {now.others:,} further deltas answered fewer rows." if now.others else ""
    batches = f"{now.batches_per_s:,.1f} batches a second" if now.batches_per_s else "no batch"
    said = "one task" if tasks == 1 else f"{tasks} tasks"
    st.caption(f"Rows of {said} went through one encoder in {batches}.{more} {_meetings(last)}")


def _meetings(last: Reading) -> str:
    """Say which tasks met most often in the last batches."""
    pairs = last.shared()
    if not pairs:
        return "No two tasks have met in a batch lately."
    shown = "; ".join(
        f"{task_words(task).title} with {task_words(other).title} in {percent(share)}"
        for task, other, share in pairs[:_MAX_PAIRS]
    )
    seen = last.value("deltabert_shared_batches_seen") or 0.0
    return f"Of the last {seen:,.0f} batches, tasks met most often: {literal(shown)}."


def _show_memory(last: Reading, backbone: Backbone) -> None:
    st.subheader("Memory", anchor=False)
    used = last.value("process_resident_memory_bytes")
    deltas = last.value("deltabert_deltas") or 0.0
    slots, taken = last.value("deltabert_slots") or 0.0, last.value("deltabert_slots_used") or 0.0
    copies = backbone.size_bytes * int(deltas)
    shown = [
        ("This process", "unknown" if used is None else human_bytes(int(used))),
        (f"{deltas:,.0f} full models instead", human_bytes(copies)),
        ("Backbone, loaded once", human_bytes(backbone.size_bytes)),
        ("Deltas in memory", f"{taken:,.0f} of {slots:,.0f} slots"),
    ]
    st.dataframe(
        pd.DataFrame(shown, columns=["", "Now"]), hide_index=True, width="stretch", alt="Memory"
    )
    st.caption(
        f"Full models: {deltas:,.0f} deltas x {human_bytes(backbone.size_bytes)} of float32 "
        "weights, computed, not measured; programs and buffers would come on top."
    )


def _duration(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else milliseconds(1000 * seconds)
