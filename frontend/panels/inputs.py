"""Text fields with a button, and the error that a panel shows below them.

The session keeps the typed texts and the sent texts apart: a rerun for another reason (a tab, the
server's return) leaves a half-typed text in its field and does not send it.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from frontend.errors import ServerError
from frontend.glossary import literal
from frontend.state import keep_widget, prepare_widget

_HEIGHT = 88  # pixels of a text field


def show_error(error: ServerError) -> None:
    """Show an error with its hints and the id of the request."""
    lines = [literal(error.message), *(f"- {literal(hint)}" for hint in error.hints)]
    if error.request_id:
        lines += ["", f":small[Request id: `{error.request_id.replace('`', '')}`]"]
    st.error("\n".join(lines))


@dataclass(frozen=True)
class Sent:
    """The texts to predict on."""

    texts: tuple[str, ...]  # one for each field, as sent last; at first the initial texts
    is_new: bool  # True if the button was pressed in this rerun
    is_outdated: bool  # True if the fields hold other texts, so that an answer to these misleads


@dataclass(frozen=True)
class TextInputs:
    """The text fields of one panel."""

    panel: str  # name under which the session keeps the texts
    labels: tuple[str, ...]  # label of each field

    def prepare(self, texts: Sequence[str]) -> None:
        """Fill the fields with initial texts, which count as sent; once per session."""
        if self._sent_key not in st.session_state:
            self.fill(texts)

    def fill(self, texts: Sequence[str]) -> None:
        """Replace the typed and the sent texts; call it in a callback or before `show`."""
        for index, text in enumerate(texts):
            st.session_state[self._key(index)] = text
        st.session_state[self._sent_key] = tuple(texts)

    @property
    def sent(self) -> tuple[str, ...]:
        """The texts that were sent last; empty before `prepare`."""
        sent: tuple[str, ...] = st.session_state.get(self._sent_key, ())
        return sent

    def show(
        self, action: str, *, enabled: bool, on_send: Callable[[tuple[str, ...]], None]
    ) -> Sent:
        """Draw the fields and the button; return the sent texts.

        Args:
            action: word on the button.
            enabled: False disables the button.
            on_send: receives the texts when the button is pressed, before the page reruns.
        """

        def send() -> None:
            texts = self._typed()
            st.session_state[self._sent_key] = texts
            on_send(texts)

        for index, column in enumerate(st.columns(len(self.labels))):
            prepare_widget(self._key(index), "")
            column.text_area(
                self.labels[index],
                key=self._key(index),
                height=_HEIGHT,
                persist_state="session",  # of a text that was typed just before leaving the view
            )
            keep_widget(self._key(index))
        pressed = st.button(
            action,
            key=f"{self.panel}/{action}",
            type="primary",
            shortcut="Ctrl+Enter",
            on_click=send,
            disabled=not enabled,
        )
        sent = st.session_state[self._sent_key]
        return Sent(sent, pressed, self._typed() != sent)

    def _typed(self) -> tuple[str, ...]:
        return tuple(st.session_state[self._key(index)] for index in range(len(self.labels)))

    def _key(self, index: int) -> str:
        return f"{self.panel}/text/{index}"

    @property
    def _sent_key(self) -> str:
        return f"{self.panel}/sent"
