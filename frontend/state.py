"""What the page remembers between reruns: the server's catalogue and the last answer of each panel.

Streamlit runs the whole script on every click. GETs are cached for a few seconds, predictions are
kept until their input changes, and what failed only because of the server is asked again once it
is back. Nothing here draws.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from frontend.client import DEFAULT_URL, Answer, Client, Row, Target, open_session
from frontend.errors import ServerError, UnreachableError
from frontend.models import Benchmark, BenchmarkRow, DeltaDetails, TaskInfo

_GET_TTL_S = 10
_NOT_READY = 503


@dataclass(frozen=True)
class Catalogue:
    """What the server serves."""

    tasks: tuple[TaskInfo, ...]
    benchmark: Benchmark

    def row(self, task: str, strategy: str, version: str) -> BenchmarkRow | None:
        """What the benchmark says about exactly that delta."""
        rows = self.benchmark.of(task, strategy)
        return next((row for row in rows if row.version == version), None)


@dataclass(frozen=True)
class Connection:
    """How things stand with the server in this rerun.

    Attributes:
        is_alive: it lives, so predictions can be asked for.
        catalogue: current, or from before it went away; None if it never answered.
        error: why it isn't alive or the catalogue isn't current.
    """

    is_alive: bool
    catalogue: Catalogue | None
    error: ServerError | None

    @property
    def should_retry(self) -> bool:
        """Whether asking again, without anything done by the user, may help."""
        return self.error is not None


@dataclass(frozen=True)
class Outcome:
    """The answer to one question, or why there is none."""

    question: tuple[object, ...]
    answer: Answer | None = None
    error: ServerError | None = None

    @property
    def can_heal(self) -> bool:
        """It failed because of the server's state, so the same question may succeed later."""
        return isinstance(self.error, UnreachableError) or (
            self.error is not None and self.error.status == _NOT_READY
        )


def session_client() -> Client:
    """This browser session's client of the server at `FRONTEND_API_URL`."""
    url = os.environ.get("FRONTEND_API_URL") or DEFAULT_URL
    client = st.session_state.get("client")
    if not isinstance(client, Client) or client.url != url.rstrip("/"):
        client = Client(open_session(url), url)
        st.session_state["client"] = client
    return client


def connect(client: Client) -> Connection:
    """Look whether the server is there, and what it serves."""
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
) -> Outcome:
    """The panel's answer for that row: the one it has, or a new call where the question changed.

    With `again` the server is asked even if the question is the same.
    """
    question = (str(row), tuple(targets))
    known: Outcome | None = st.session_state.get(f"outcome/{panel}")
    if known is not None and known.question == question and not again and not known.can_heal:
        return known
    try:
        outcome = Outcome(question, answer=client.predict(row, targets))
    except ServerError as error:
        outcome = Outcome(question, error=error)
    st.session_state[f"outcome/{panel}"] = outcome
    if outcome.can_heal:
        st.session_state["waiting"] = True  # main's status line looks for the server's return
    return outcome


@st.cache_data(ttl=_GET_TTL_S, show_spinner=False, max_entries=16)
def _load_catalogue(url: str, _client: Client) -> Catalogue:  # the URL is the cache key
    return Catalogue(tuple(_client.tasks()), _client.benchmark())


@st.cache_data(ttl=_GET_TTL_S, show_spinner=False, max_entries=256)
def load_delta(url: str, _client: Client, task: str, strategy: str) -> DeltaDetails:
    """The manifest of a delta, from a few seconds ago at most."""
    return _client.delta(task, strategy)
