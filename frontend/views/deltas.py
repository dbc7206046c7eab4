"""The view Deltas: what is served and refused, the versions of a delta, and where it changes.

`frontend.panels.admin` has the changes that need a key. The list comes by pages, so that it stays
short with thousands of deltas. Tested by `tests/browser/test_reports.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from frontend.errors import ServerError
from frontend.glossary import counted, human_bytes, percent, task_words
from frontend.links import opened, share
from frontend.models import DeltaDetails
from frontend.panels.admin import show_changes
from frontend.panels.inputs import show_error
from frontend.reports.answers import (
    ChangeNorm,
    DeltaPage,
    ListedDelta,
    describe,
    is_missing,
    list_deltas,
    norms_of,
)
from frontend.reports.versions import differences
from frontend.state import ViewContext

_PAGE_ROWS = 25
_STATUSES = {"served": "Served", "loaded": "In memory", "refused": "Refused"}
_SHORT = 12  # digits of a version in lists


def show_deltas(context: ViewContext) -> None:
    """Draw the view."""
    st.header("Deltas on this server", anchor=False)
    try:
        found = _show_list(context)
    except ServerError as error:
        show_error(error)
        return
    chosen = _choose(context, found)
    if chosen is not None:
        _show_delta(context, chosen)
    show_changes(context, chosen)


def _show_list(context: ViewContext) -> DeltaPage:
    """Draw filters and a page of the list."""
    left, middle, right = st.columns([4, 3, 2], vertical_alignment="bottom")
    query = left.text_input(
        "Search",
        key="deltas/search",
        placeholder="Task, strategy or version",
        persist_state="session",
    )
    status = middle.segmented_control(
        "Show",
        list(_STATUSES),
        default="served",
        required=True,
        format_func=_STATUSES.__getitem__,
        key="deltas/status",
        persist_state="session",
    )
    filters: dict[str, str | int] = {"status": status or "served", "limit": _PAGE_ROWS}
    if query.strip():
        filters["q"] = query.strip()
    total = list_deltas(context.client, **(filters | {"limit": 1})).total
    pages = max(1, -(-total // _PAGE_ROWS))
    page = 1
    if pages > 1:
        page = right.number_input(
            f"Page of {pages:,}", 1, pages, key=f"deltas/page/{status}/{query}"
        )
    found = list_deltas(context.client, **(filters | {"offset": (page - 1) * _PAGE_ROWS}))
    if found.rejected:
        st.dataframe(
            pd.DataFrame([vars(each) for each in found.rejected]).rename(
                columns={"file": "File", "reason": "Why it is refused"}
            ),
            hide_index=True,
            width="stretch",
            alt="Refused files and reasons",
        )
    elif found.deltas:
        _show_served(found.deltas)
    else:
        st.caption(
            "No file is refused."
            if status == "refused" and not query
            else "Nothing fits this search."
        )
    several = counted(total, "file" if status == "refused" else "version")
    st.caption(f"{several}. Source: `{context.client.url}/deltas`.")
    return found


def _show_served(deltas: Sequence[ListedDelta]) -> None:
    st.dataframe(
        pd.DataFrame(
            {
                "Task": [task_words(each.task).title for each in deltas],
                "Strategy": [each.strategy for each in deltas],
                "Version": [each.version for each in deltas],
                "Answers": ["by default" if each.is_default else "if named" for each in deltas],
                "In memory": ["yes" if each.loaded else "no" for each in deltas],
                "Delta": [human_bytes(each.size_bytes) for each in deltas],
                "Trained values": [each.trainable_parameters for each in deltas],
                "Trained on": [each.trained_on for each in deltas],
            }
        ).style.format({"Trained values": "{:,}"}),
        hide_index=True,
        width="stretch",
        height="content" if len(deltas) <= 10 else 390,
        alt="Served deltas",
    )


def _choose(context: ViewContext, found: DeltaPage) -> tuple[ListedDelta, ...] | None:
    """Draw the field that chooses a delta; return its versions, the default one first."""
    listed = list(dict.fromkeys((each.task, each.strategy) for each in found.deltas))
    wanted = opened("task"), opened("strategy")
    key = "deltas/chosen"
    if all(wanted) and key not in st.session_state:
        st.session_state[key] = wanted
    if st.session_state.get(key) not in listed and st.session_state.get(key) is not None:
        listed.insert(0, st.session_state[key])
    if not listed:
        return None
    task, strategy = st.selectbox(
        "Delta to look at",
        listed,
        format_func=lambda name: f"{task_words(name[0]).title} · {name[1]}",
        key=key,
        persist_state="session",
    )
    share("task", task)
    share("strategy", strategy)
    try:
        versions = list_deltas(context.client, task=task, strategy=strategy, status="served").deltas
    except ServerError as error:
        show_error(error)
        return None
    if not versions:
        st.info(f"{task}/{strategy} is not served any more.")
        return None
    return tuple(sorted(versions, key=lambda each: not each.is_default))


def _show_delta(context: ViewContext, versions: tuple[ListedDelta, ...]) -> None:
    default = versions[0]
    st.subheader(f"{task_words(default.task).title} · {default.strategy}", anchor=False)
    by_version = {each.version: each for each in versions}
    left, right = st.columns(2)
    names = list(by_version)
    wanted = opened("version")
    first = left.selectbox(
        "Version",
        names,
        index=names.index(wanted) if wanted in names else 0,
        format_func=lambda name: _version_text(by_version[name]),
        key=f"deltas/version/{default.task}/{default.strategy}/{default.version}",
    )
    others = [name for name in names if name != first]
    second = None
    if others:
        second = right.selectbox(
            "Compare with",
            others,
            index=None,
            format_func=lambda name: _version_text(by_version[name]),
            placeholder="another version",
            key=f"deltas/other/{default.task}/{default.strategy}/{first}",
        )
    try:
        details = _describe(context.client.url, context, default.task, default.strategy, first)
        other = (
            _describe(context.client.url, context, default.task, default.strategy, second)
            if second
            else None
        )
    except ServerError as error:
        show_error(error)
        return
    if other is not None:
        _show_differences(details, other)
    _show_norms(context, by_version[first])
    with st.expander(f"Manifest of version {first}, {details.size_bytes:,} bytes"):
        st.json(dict(details.manifest), expanded=1)


def _version_text(delta: ListedDelta) -> str:
    answers = "answers by default" if delta.is_default else "answers if named"
    return f"{delta.version[:_SHORT]} · {answers}"


@st.cache_data(ttl=60, show_spinner=False, max_entries=64)
def _describe(
    url: str, _context: ViewContext, task: str, strategy: str, version: str
) -> DeltaDetails:  # a version's details never change; the URL is part of the cache key
    return describe(_context.client, task, strategy, version)


def _show_differences(first: DeltaDetails, second: DeltaDetails) -> None:
    found = differences(first.manifest, second.manifest)
    st.markdown("**Difference of the two versions**")
    if not found:
        st.caption("Their manifests are equal; only the trained values differ.")
        return
    st.dataframe(
        pd.DataFrame(
            {
                "Field": [each.field for each in found],
                first.version[:_SHORT]: [each.first for each in found],
                second.version[:_SHORT]: [each.second for each in found],
            }
        ),
        hide_index=True,
        width="stretch",
        height="content" if len(found) <= 10 else 390,
        alt="Fields of the manifest in which the two versions differ",
    )


def _show_norms(context: ViewContext, delta: ListedDelta) -> None:
    st.markdown("**What changed where**")
    try:
        norms = _norms(context.client.url, context, delta.task, delta.strategy, delta.version)
    except ServerError as error:
        if is_missing(error):
            st.caption("This server runs an earlier release, which does not measure changes.")
        else:
            show_error(error)
        return
    if not norms:
        st.caption("This delta changes nothing in the backbone: only its head is trained.")
        return
    most = max(norms, key=lambda each: each.norm / each.frozen_norm if each.frozen_norm else 0.0)
    said = (
        f"Norm of trained minus frozen values, as a share of the norm of the frozen ones. It is "
        f"largest for {most.part} {most.kind} in "
        + (f"layer {most.layer}" if most.layer.isdigit() else f"the {most.layer}")
        + (f": {percent(most.norm / most.frozen_norm)}." if most.frozen_norm else ".")
    )
    shares, texts = norm_tables(norms)
    tint = shares.map(lambda share: f"background-color: rgba(76, 110, 245, {0.5 * share:.2f})")
    st.dataframe(
        texts.style.apply(lambda _: tint, axis=None),
        width="stretch",
        height="content" if len(texts) <= 16 else 560,
        column_config={"_index": st.column_config.Column(width=110)},
        alt=said,
    )
    st.caption(
        f"{said} The head has no frozen values and is left out. Computed by the server from the "
        "delta's file; the page holds no weights."
    )


def norm_tables(norms: Sequence[ChangeNorm]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the change by layer, down, and kind of values: a tint from 0 to 1, and its text."""
    layers = list(dict.fromkeys(each.layer for each in norms))
    kinds = sorted({f"{each.part} {each.kind}" for each in norms})
    empty = pd.DataFrame(index=pd.Index(layers, name="Layer"), columns=kinds)
    shares, texts = empty.astype(float).fillna(0.0), empty.astype(object).fillna("")
    for each in norms:
        place = each.layer, f"{each.part} {each.kind}"
        share = each.norm / each.frozen_norm if each.frozen_norm else 0.0
        shares.loc[place] = share
        texts.loc[place] = percent(share) if each.frozen_norm else f"from 0 to {each.norm:.3g}"
    return shares / max(shares.to_numpy().max(), 1e-9), texts


@st.cache_data(ttl=600, show_spinner="Measuring the change ...", max_entries=64)
def _norms(
    url: str, _context: ViewContext, task: str, strategy: str, version: str
) -> tuple[ChangeNorm, ...]:  # a version's change never changes; the URL is part of the cache key
    return norms_of(_context.client, task, strategy, version).norms
