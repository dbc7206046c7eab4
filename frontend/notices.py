"""Remarks below the input: errors as sentences, never tracebacks, and the request for a shell."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from frontend.client import Client, Row, Target, curl_command, fan_out_body
from frontend.errors import ServerError
from frontend.wording import literal


def show_error(error: ServerError) -> None:
    """What went wrong, what to do, and what to look for in the server's log."""
    lines = [literal(error.message), *(f"- {literal(hint)}" for hint in error.hints)]
    if error.request_id:
        lines += ["", f":small[Request id: `{error.request_id.replace('`', '')}`]"]
    st.error("\n".join(lines))


def show_curl(client: Client, row: Row, targets: Sequence[Target]) -> None:
    """The request that the page sent, to be copied."""
    with st.expander("The same request with curl"):
        command = curl_command(client.url, "/predict", fan_out_body(row, targets))
        st.code(command, language="bash", wrap_lines=True)
