"""Keeps the options of a view in the page's address, so that a reload or a colleague sees the same.

A session reads the address once, when it begins; afterwards the views write to it, at the end of
each run. Each view has one entry in the browser's history: a change of its options replaces the
entry. Texts that are too long for an address stay out of it.
Tested by `tests/browser/test_address.py` and `tests/browser/test_page.py`.
"""

from __future__ import annotations

import streamlit as st

_MAX_CHARS = 1500  # of a value; some programs cut addresses of more than 2,000 characters
_OPENED, _SHARED, _LATEST = "links/opened", "links/shared", "links/latest"
_IS_FIRST = "links/is_first"  # run of the session
_OF_ALL_VIEWS = ("task", "favourites")  # kept by a view that does not show them
# Streamlit adds an entry for each change of an option, so "back" would undo them one by one.
_ONE_ENTRY_PER_VIEW = """<script>
if (!window.oneEntryPerView) {
  window.oneEntryPerView = true;
  const push = history.pushState.bind(history);
  history.pushState = (state, title, address) => {
    const isSameView = new URL(address, location.href).pathname === location.pathname;
    isSameView ? history.replaceState(state, title, address) : push(state, title, address);
  };
}
</script>"""


def remember_address() -> None:
    """Keep the options with which the session was opened; call it first in each run."""
    st.session_state[_SHARED] = {}
    st.session_state[_IS_FIRST] = _OPENED not in st.session_state
    if st.session_state[_IS_FIRST]:
        st.session_state[_OPENED] = st.query_params.to_dict()
    st.html(_ONE_ENTRY_PER_VIEW, unsafe_allow_javascript=True)


def opened(name: str) -> str:
    """Return the option with which the session was opened; empty if the address had none."""
    given: dict[str, str] = st.session_state.get(_OPENED, {})
    return given.get(name, "")


def opened_choice(name: str, allowed: list[str]) -> str:
    """Return the option with which the session was opened if it is allowed, else the first one."""
    return opened(name) if opened(name) in allowed else allowed[0]


def share(name: str, value: str) -> None:
    """Give the address an option of this view; an empty or too long value takes it out."""
    _shared()[name] = value if len(value) <= _MAX_CHARS else ""


def write_address() -> None:
    """Write what the view shared, and no option of another view; call it after drawing a view.

    The first run leaves the address as it was opened: it shows the same, and the script that keeps
    one entry for each view may not be in the browser yet.
    """
    kept = {name: _latest(name) for name in _OF_ALL_VIEWS}
    options = {name: value for name, value in (kept | _shared()).items() if value}
    st.session_state[_LATEST] = options
    if not st.session_state[_IS_FIRST] and st.query_params.to_dict() != options:
        st.query_params.from_dict(options)


def _shared() -> dict[str, str]:
    shared: dict[str, str] = st.session_state.setdefault(_SHARED, {})
    return shared


def _latest(name: str) -> str:
    """Return an option as it was written last; navigation has emptied the address since then."""
    latest: dict[str, str] = st.session_state.get(_LATEST, {})
    return latest.get(name, opened(name))
