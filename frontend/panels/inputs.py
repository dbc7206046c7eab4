"""Remarks below the input: errors as sentences, never tracebacks, and the request for a shell.

Text fields with a Predict button, as both panels use them.

What is typed and what was sent are kept apart: a rerun for another reason (a tab, the server's
return) keeps a half-typed text in its field and does not send it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from frontend.client import Client, Row, Target, curl_command, fan_out_body
from frontend.errors import ServerError
from frontend.glossary import literal


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


_HEIGHT = 88


@dataclass(frozen=True)
class Sent:
    """What to ask the server.

    Attributes:
        texts: of each field, as they were when Predict was pressed; at first the field's own start.
        is_new: Predict was pressed just now.
    """

    texts: tuple[str, ...]
    is_new: bool

    @property
    def is_blank(self) -> bool:
        """There is nothing to ask about."""
        return not any(text.strip() for text in self.texts)


@dataclass(frozen=True)
class TextInputs:
    """The fields of one panel.

    Attributes:
        panel: name under which the session keeps what is typed and sent.
        labels: one for each field.
    """

    panel: str
    labels: tuple[str, ...]

    def prepare(self, texts: Sequence[str]) -> None:
        """Give the fields a text to start with, which counts as sent; once a session."""
        if self._sent_key not in st.session_state:
            self.fill(texts)

    def fill(self, texts: Sequence[str]) -> None:
        """Replace what is typed and sent. In a callback, or before the fields are drawn."""
        for index, text in enumerate(texts):
            st.session_state[self._key(index)] = text
        st.session_state[self._sent_key] = tuple(texts)

    def show(self, *, enabled: bool, on_send: Callable[[tuple[str, ...]], None]) -> Sent:
        """Draw them; `on_send` gets the texts before the page reruns because of Predict."""

        def send() -> None:
            texts = tuple(st.session_state[self._key(i)] for i in range(len(self.labels)))
            st.session_state[self._sent_key] = texts
            on_send(texts)

        for index, column in enumerate(st.columns(len(self.labels))):
            column.text_area(
                self.labels[index],
                key=self._key(index),
                height=_HEIGHT,
                on_change="ignore",
                persist_state="session",
            )
        pressed = st.button(
            "Predict",
            key=f"{self.panel}/predict",
            type="primary",
            shortcut="Ctrl+Enter",
            on_click=send,
            disabled=not enabled,
        )
        return Sent(st.session_state[self._sent_key], pressed)

    def _key(self, index: int) -> str:
        return f"{self.panel}/text/{index}"

    @property
    def _sent_key(self) -> str:
        return f"{self.panel}/sent"
