"""Keeps the options of a view in the page's address, so that a reload or a colleague sees the same.

A session reads the address once, when it begins; afterwards the views write to it. Texts that are
too long for an address stay out of it. Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

import streamlit as st

_MAX_CHARS = 1500  # of a value; some programs cut addresses of more than 2,000 characters
_OPENED = "links/opened"


def remember_address() -> None:
    """Keep the options with which the session was opened; call it first in each run."""
    if _OPENED not in st.session_state:
        st.session_state[_OPENED] = st.query_params.to_dict()


def opened(name: str) -> str:
    """Return the option with which the session was opened; empty if the address had none."""
    given: dict[str, str] = st.session_state.get(_OPENED, {})
    return given.get(name, "")


def opened_choice(name: str, allowed: list[str]) -> str:
    """Return the option with which the session was opened if it is allowed, else the first one."""
    return opened(name) if opened(name) in allowed else allowed[0]


def share(name: str, value: str) -> None:
    """Write an option into the address; an empty or too long value takes it out."""
    if not value or len(value) > _MAX_CHARS:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != value:
        st.query_params[name] = value
