"""The page: `streamlit run frontend/main.py` runs this file from top to bottom on every click.

The file only arranges the page. `frontend.panels` draws, `frontend.state` remembers between reruns,
`frontend.client` talks to the server. No weights and no tokenizer are loaded here.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import streamlit as st

from frontend.client import Client
from frontend.errors import UnreachableError
from frontend.links import remember_address, write_address
from frontend.panels.inputs import show_error
from frontend.state import Connection, ViewContext, connect, session_client
from frontend.views.benchmark import show_benchmark
from frontend.views.deltas import show_deltas
from frontend.views.server import show_server
from frontend.views.table import show_table
from frontend.views.trust import show_trust
from frontend.views.try_text import show_try
from frontend.views.why import show_why

_POLL_S = 5.0
_RETRY_S = 2.0


@dataclass(frozen=True)
class View:
    """An entry of the navigation; its path in the address is its title in small letters."""

    title: str
    icon: str
    show: Callable[[ViewContext], None]


VIEWS = (
    View("Try", ":material/edit_note:", show_try),
    View("Why", ":material/format_ink_highlighter:", show_why),
    View("Table", ":material/table:", show_table),
    View("Trust", ":material/verified:", show_trust),
    View("Benchmark", ":material/monitoring:", show_benchmark),
    View("Deltas", ":material/layers:", show_deltas),
    View("Server", ":material/speed:", show_server),
)


def main() -> None:
    """Draw the page."""
    folder = Path(str(files("frontend")))  # not __file__: a symbolic link may start the script
    st.set_page_config("DeltaBERT", page_icon=folder / "icon.svg", layout="wide")
    st.html(folder / "page.css")
    remember_address()
    client = session_client()
    connection = connect(client)
    st.session_state["waiting"] = connection.error is not None
    view = st.navigation(_pages(client, connection), position="top")
    _show_header(client, connection)
    # The container is always there: if it came and went, the browser would rebuild everything below
    # and lose half-typed text.
    with st.container():
        _show_trouble(client, connection)
    view.run()


def _pages(client: Client, connection: Connection) -> list[st.Page]:
    """Return the views; each draws nothing until the server has answered once."""

    def page(view: View) -> st.Page:
        def show() -> None:
            catalogue = connection.catalogue
            if catalogue is not None and catalogue.tasks:
                view.show(ViewContext(client, catalogue, connection.is_alive))
                write_address()
            elif catalogue is not None:
                st.info("The server runs, but serves no deltas yet. Add delta files to its folder.")

        path = view.title.lower()
        return st.Page(
            show, title=view.title, icon=view.icon, url_path=path, default=view is VIEWS[0]
        )

    return [page(view) for view in VIEWS]


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
    address = f"<code>{escape(client.url)}</code>"
    st.html(f'<p class="db-status db-{kind}" role="status">{word}{address}</p>', width="content")


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


if __name__ == "__main__":
    main()
