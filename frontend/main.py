"""The page: `streamlit run frontend/main.py` runs this file from top to bottom on every click.

The file only arranges the page. `frontend.panels` draws, `frontend.state` remembers between reruns,
`frontend.client` talks to the server. No weights and no tokenizer are loaded here.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import streamlit as st

from frontend.client import Client
from frontend.errors import UnreachableError
from frontend.glossary import task_words
from frontend.models import TaskInfo
from frontend.panels.benchmark import show_full_benchmark, show_task_benchmark
from frontend.panels.inputs import show_error
from frontend.panels.predict import show_fan_out_panel, show_task_panel
from frontend.state import Catalogue, Connection, connect, session_client

_POLL_S = 5.0
_RETRY_S = 2.0


def main() -> None:
    """Draw the page."""
    folder = Path(str(files("frontend")))  # not __file__: a symbolic link may start the script
    st.set_page_config("DeltaBERT", page_icon=folder / "icon.svg", layout="wide")
    st.html(folder / "page.css")
    client = session_client()
    connection = connect(client)
    st.session_state["waiting"] = connection.error is not None
    _show_header(client, connection)
    # The container is always there: if it came and went, the browser would rebuild everything below
    # and lose half-typed text.
    with st.container():
        _show_trouble(client, connection)
    if connection.catalogue is None:
        return
    if not connection.catalogue.tasks:
        st.info("The server runs, but serves no deltas yet. Add delta files to its folder.")
        return
    _show_tabs(client, connection.catalogue, is_alive=connection.is_alive)


def _show_header(client: Client, connection: Connection) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="header"):
        st.html(
            '<div class="db-brand"><i aria-hidden="true">Δ</i><h1>DeltaBERT</h1>'
            "<span>One frozen backbone, many tasks</span></div>",
            width="content",
        )
        # Full reruns draw the status, too; only a rerun by its own timer may rerun the page.
        st.session_state["full_rerun"] = True
        interval = _POLL_S if connection.error is None else _RETRY_S
        st.fragment(_show_status, run_every=interval)(client, is_alive=connection.is_alive)


def _show_status(client: Client, *, is_alive: bool) -> None:
    """Draw a dot that shows if the server answers; rerun the page when that changes."""
    is_full_rerun = st.session_state.pop("full_rerun", False)
    if not is_full_rerun:
        now = client.is_alive()
        if now != is_alive or (now and st.session_state.get("waiting", False)):
            st.rerun()
    word, kind = ("Connected", "up") if is_alive else ("Not connected", "down")
    st.html(f'<p class="db-status db-{kind}" role="status">{word}</p>', width="content")


def _show_trouble(client: Client, connection: Connection) -> None:
    if isinstance(connection.error, UnreachableError):
        consequence = (
            "The page opens by itself as soon as it does."
            if connection.catalogue is None
            else "Your text is kept; predictions resume when the server is back."
        )
        st.warning(
            f"**The server at `{client.url}` does not answer.** {consequence}  \n"
            "To start one on this machine: `python -m app`. "
            "For another address, set `FRONTEND_API_URL`."
        )
    elif connection.error is not None:
        show_error(connection.error)


def _show_tabs(client: Client, catalogue: Catalogue, *, is_alive: bool) -> None:
    one, every, benchmark = st.tabs(
        ["One task", "All tasks on one text", "Benchmark"], key="tab", on_change="rerun"
    )
    by_name = {task.name: task for task in catalogue.ranked}
    # On the first visit, the best learnt of the tasks with the most strategies is chosen.
    task = max(catalogue.ranked, key=lambda task: len(task.strategies))
    task = by_name.get(st.session_state.get("task", ""), task)
    if one.open:
        with one:
            task = _choose_task(by_name, task)
            left, right = st.columns([3, 2], gap="large")
            with left:
                show_task_panel(client, catalogue, task, is_alive=is_alive)
            with right:
                show_task_benchmark(client, catalogue.benchmark, task)
    if every.open:
        with every:
            show_fan_out_panel(client, catalogue, is_alive=is_alive)
    if benchmark.open:
        with benchmark:
            show_full_benchmark(catalogue.benchmark, task.name)


def _choose_task(by_name: dict[str, TaskInfo], default: TaskInfo) -> TaskInfo:
    name = st.pills(
        "Task",
        list(by_name),
        default=default.name,
        required=True,
        format_func=_pill_text,
        key="task",
        label_visibility="collapsed",
        persist_state="session",
    )
    return by_name[name or default.name]


def _pill_text(name: str) -> str:
    words = task_words(name)
    return f"{words.title} :gray[:small[{words.topic}]]" if words.topic else words.title


if __name__ == "__main__":
    main()
