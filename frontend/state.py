"""The page's memory between reruns: the server's catalogue and the last answer of each panel.

Streamlit runs the whole script on every click. GET requests are cached for a few seconds.
Predictions are kept until their input changes. A request that failed because the server was away is
sent again once the server is back. This module draws nothing; the panels do.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import streamlit as st

from frontend.client import DEFAULT_URL, Answer, Client, Row, Target, open_session
from frontend.errors import ServerError, UnreachableError
from frontend.models import Benchmark, BenchmarkRow, DeltaDetails, Prediction, StudyRow, TaskInfo

_GET_TTL_S = 10
_NOT_READY = 503
_OWN_ROWS = "files"  # the source of training rows that no data set names


@dataclass(frozen=True)
class Catalogue:
    """The tasks and the benchmark of a server; all sessions share one, so nothing changes it."""

    tasks: tuple[TaskInfo, ...]
    benchmark: Benchmark

    def row(self, task: str, strategy: str, version: str) -> BenchmarkRow | None:
        """Return the benchmark row of one version of a delta, if there is one."""
        rows = self.benchmark.of(task, strategy)
        return next((row for row in rows if row.version == version), None)

    def studied(self, prediction: Prediction) -> StudyRow | None:
        """Return the study's mean and spread for a task and strategy, if it has several seeds."""
        wanted = prediction.task, prediction.strategy
        return next(
            (
                row
                for row in self.benchmark.study
                if (row.task, row.strategy) == wanted and row.part == "main" and row.spread
            ),
            None,
        )

    @cached_property
    def by_name(self) -> dict[str, TaskInfo]:
        """The tasks by their names."""
        return {task.name: task for task in self.tasks}

    @cached_property
    def ranked(self) -> tuple[TaskInfo, ...]:
        """The tasks, the best learnt one first; tasks without a known score come last."""
        return tuple(sorted(self.tasks, key=lambda task: -(self.skill(task) or 0.0)))

    @cached_property
    def own_tasks(self) -> list[str]:
        """The names of the tasks that were trained on the user's own rows, the newest first."""
        own = {row.task for row in self.benchmark.rows if row.data == _OWN_ROWS}
        found = [task for task in self.tasks if task.name in own]
        return [task.name for task in sorted(found, key=lambda task: -(task.changed_at or 0))]

    def skill(self, task: TaskInfo) -> float | None:
        """Return how far a task's best delta came from guessing, 0, to the best score, 1.

        Guessing is right for one row in as many as there are labels, and correlates with nothing.
        None means that no score of the task is such a share.
        """
        found: list[float] = []
        for row in self.benchmark.of(task.name):
            chance = 1 / max(1, len(task.labels)) if row.metric == "accuracy" else 0.0
            if row.metric != "mse" and chance < 1:
                found.append((row.value - chance) / (1 - chance))
        return max(found, default=None)


@dataclass(frozen=True)
class Connection:
    """The state of the server in this rerun."""

    is_alive: bool  # True if the server answers, so that it can predict
    catalogue: Catalogue | None  # the latest one received; None if the server never answered
    error: ServerError | None  # the reason if the server isn't alive or the catalogue isn't current


@dataclass(frozen=True)
class ViewContext:
    """The server as a view sees it."""

    client: Client
    catalogue: Catalogue  # with one task or more
    is_alive: bool  # False if the server does not answer now, so that nothing can be asked


@dataclass(frozen=True)
class PanelResult:
    """The answer to a panel's request, or the error."""

    request: tuple[object, ...]
    answer: Answer | None = None
    error: ServerError | None = None

    @property
    def can_heal(self) -> bool:
        """True if the server's state caused the error, so that a retry may succeed."""
        return isinstance(self.error, UnreachableError) or (
            self.error is not None and self.error.status == _NOT_READY
        )


def prepare_widget(key: str, default: object) -> None:
    """Give a widget its value of the last time it was drawn, or a default; call it before drawing.

    Streamlit forgets the values of widgets that a view does not draw. A widget of the same key in
    another view takes a value only if it is set anew.
    """
    kept = st.session_state.get(f"kept/{key}", default)
    st.session_state[key] = st.session_state.get(key, kept)


def keep_widget(key: str) -> None:
    """Remember the value of a widget; call it after drawing."""
    st.session_state[f"kept/{key}"] = st.session_state[key]


def session_client() -> Client:
    """Return the browser session's client of the server at `FRONTEND_API_URL`."""
    url = os.environ.get("FRONTEND_API_URL") or DEFAULT_URL
    key = os.environ.get("FRONTEND_API_KEY", "").strip() or None
    client = st.session_state.get("client")
    if not isinstance(client, Client) or client.address != url.rstrip("/"):
        client = Client(open_session(url, key), url)
        st.session_state["client"] = client
    return client


def connect(client: Client) -> Connection:
    """Probe the server and load its catalogue."""
    known: Catalogue | None = st.session_state.get("catalogue")
    try:
        client.probe()
    except ServerError as error:
        return Connection(False, known, error)
    try:
        known = _load_catalogue(client.url, client)
    except ServerError as error:
        return Connection(True, known, error)
    st.session_state["catalogue"] = known
    return Connection(True, known, None)


def ask(
    client: Client, panel: str, row: Row, targets: Sequence[Target], *, again: bool = False
) -> PanelResult:
    """Return the panel's result for a row; call the server only if the request has changed.

    Args:
        client: the server to call.
        panel: name under which the session keeps the result.
        row: the input.
        targets: the tasks and strategies to ask.
        again: call the server even if the request is the same.
    """
    request = (str(row), tuple(targets))
    known: PanelResult | None = st.session_state.get(f"result/{panel}")
    if known is not None and known.request == request and not again and not known.can_heal:
        return known
    try:
        result = PanelResult(request, answer=client.predict(row, targets))
    except ServerError as error:
        result = PanelResult(request, error=error)
    st.session_state[f"result/{panel}"] = result
    if result.can_heal:
        st.session_state["waiting"] = True  # the status in `main` watches for the server's return
    return result


def forget_answers() -> None:
    """Ask the server anew from now on, because it has changed."""
    st.cache_data.clear()
    st.cache_resource.clear()


# A resource is shared as it is; data would be copied for each rerun, 10,000 tasks with it.
@st.cache_resource(ttl=_GET_TTL_S, show_spinner=False, max_entries=16)
def _load_catalogue(url: str, _client: Client) -> Catalogue:  # the URL is the cache key
    return Catalogue(tuple(_client.tasks()), _client.benchmark())


@st.cache_data(ttl=_GET_TTL_S, show_spinner=False, max_entries=256)
def load_delta(url: str, _client: Client, task: str, strategy: str) -> DeltaDetails:
    """Return the details of a delta, at most a few seconds old."""
    return _client.delta(task, strategy)
