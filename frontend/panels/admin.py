"""The panel that changes deltas, for people with the key of an admin.

The key is typed into a password field and lives in the session alone: it is sent with the requests
of this panel and is in no address, no log and no cache. Each change says first what it will do, and
is sent after a second click. Tested by `tests/browser/test_reports.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus

import streamlit as st

from frontend.errors import ServerError
from frontend.glossary import human_bytes
from frontend.panels.inputs import show_error
from frontend.reports.answers import ListedDelta, delta_path
from frontend.reports.versions import (
    PlannedChange,
    clear_effect,
    remove_effect,
    roll_back_effect,
    split_effect,
    upload_effect,
)
from frontend.state import ViewContext, forget_answers

_KEY, _PLAN, _OUTCOME = "admin/key", "admin/plan", "admin/outcome"
_ACTIONS = {
    "upload": "Upload",
    "rollback": "Roll back",
    "split": "Split traffic",
    "remove": "Remove",
    "reload": "Read folders",
}


def show_changes(context: ViewContext, versions: Sequence[ListedDelta] | None) -> None:
    """Draw the panel for a delta; None if there is none to change yet, so that one can be added.

    `versions` are those of the delta, the default one first.
    """
    with st.expander("Change deltas (needs an admin key)", expanded=_PLAN in st.session_state):
        st.text_input(
            "Admin key",
            type="password",
            key=_KEY,
            autocomplete="off",
            help="It stays in this browser session and is sent to the server with changes only. "
            "`python -m app keys new NAME --task '*' --scope admin` makes one.",
        )
        action = st.segmented_control(
            "Change",
            list(_ACTIONS),
            default="upload",
            required=True,
            format_func=_ACTIONS.__getitem__,
            key="admin/action",
            on_change=_forget_plan,
        )
        plan = _plan(action or "upload", versions)
        _show_buttons(context, plan)
        _show_outcome()


def _plan(action: str, versions: Sequence[ListedDelta] | None) -> PlannedChange | None:
    """Draw the fields of an action; return its change if they are filled in."""
    if action == "upload":
        return _plan_upload(versions)
    if action == "reload":
        return PlannedChange(
            "Read the folders",
            "The server reads all its folders again. Sound files that were added or replaced are "
            "served, removed ones are no longer served, and bad ones change nothing.",
            "POST",
            "/deltas/reload",
        )
    if not versions:
        st.caption("Choose a delta above first.")
        return None
    return {"rollback": _plan_roll_back, "split": _plan_split, "remove": _plan_removal}[action](
        versions
    )


def _plan_upload(versions: Sequence[ListedDelta] | None) -> PlannedChange | None:
    chosen = versions[0] if versions else None
    left, right = st.columns(2)
    task = left.text_input("Task", value=chosen.task if chosen else "", key="admin/task")
    strategy = right.text_input(
        "Strategy", value=chosen.strategy if chosen else "", key="admin/strategy"
    )
    file = st.file_uploader("File of a delta", type="safetensors", key="admin/file")
    if file is None or not task.strip() or not strategy.strip():
        st.caption("Name task and strategy as the file's manifest does, and choose the file.")
        return None
    is_chosen = chosen is not None and (task, strategy) == (chosen.task, chosen.strategy)
    default = chosen.version if chosen is not None and is_chosen else None
    name = f"{task.strip()}/{strategy.strip()}"
    return PlannedChange(
        "Upload",
        upload_effect(name.replace("`", ""), human_bytes(file.size), default),
        "PUT",
        delta_path(task.strip(), strategy.strip()),
        content=file.getvalue(),
    )


def _plan_roll_back(versions: Sequence[ListedDelta]) -> PlannedChange | None:
    default, *others = versions
    if not others:
        st.caption("Only one version is served, so there is nothing to roll back to.")
        return None
    version = _version_field("Roll back to", others)
    name = f"{default.task}/{default.strategy}"
    return PlannedChange(
        "Roll back",
        roll_back_effect(name, default.version, version),
        "POST",
        delta_path(default.task, default.strategy, "rollback"),
        body={"version": version},
    )


def _plan_split(versions: Sequence[ListedDelta]) -> PlannedChange | None:
    default, *others = versions
    name = f"{default.task}/{default.strategy}"
    path = delta_path(default.task, default.strategy).replace("/deltas/", "/traffic/", 1)
    modes = ["split", "shadow", "clear"] if others else ["clear"]
    words = {"split": "Split", "shadow": "Shadow", "clear": "Default answers alone"}
    mode = st.segmented_control(
        "Traffic",
        modes,
        default=modes[0],
        required=True,
        format_func=words.__getitem__,
        key=f"admin/traffic/{len(modes)}",
        on_change=_forget_plan,
    )
    if mode == "clear" or not others:
        return PlannedChange("Clear the rule", clear_effect(name, default.version), "DELETE", path)
    version = _version_field("Second version", others)
    is_shadow = mode == "shadow"
    share = 0 if is_shadow else st.slider("Share of the requests, %", 1, 99, 10, key="admin/share")
    rule = {"shadow": {"version": version}}
    if not is_shadow:
        rule = {"split": {"version": version, "share": share / 100}}  # type: ignore[dict-item]
    return PlannedChange(
        "Set the rule",
        split_effect(name, default.version, version, share, shadow=is_shadow),
        "PUT",
        path,
        body=rule,
    )


def _plan_removal(versions: Sequence[ListedDelta]) -> PlannedChange:
    default, *others = versions
    whole = "all versions"
    version = st.selectbox(
        "Remove",
        [whole, *(each.version for each in others)],
        key="admin/removed",
        on_change=_forget_plan,
    )
    one = None if version == whole else version
    return PlannedChange(
        "Remove",
        remove_effect(f"{default.task}/{default.strategy}", len(versions), one),
        "DELETE",
        delta_path(default.task, default.strategy),
        query=None if one is None else {"version": one},
    )


def _version_field(label: str, versions: Sequence[ListedDelta]) -> str:
    names = [each.version for each in versions]
    return st.selectbox(label, names, key=f"admin/version/{label}", on_change=_forget_plan)


def _show_buttons(context: ViewContext, plan: PlannedChange | None) -> None:
    """Draw the first button, or what will happen with the second one."""
    waiting = st.session_state.get(_PLAN)
    if plan is None or waiting != plan:
        st.session_state.pop(_PLAN, None)
        st.button(
            "Review this change",
            key="admin/review",
            disabled=plan is None or not context.is_alive,
            on_click=_wait_for_confirmation,
            args=(plan,),
        )
        return
    st.warning(f"**What will happen.** {plan.effect}", icon=":material/info:")
    with st.container(horizontal=True):
        st.button(
            f"Yes: {plan.title.lower()}",
            key="admin/confirm",
            type="primary",
            on_click=_send,
            args=(context, plan),
        )
        st.button("Cancel", key="admin/cancel", on_click=_forget_plan)


def _wait_for_confirmation(plan: PlannedChange) -> None:
    st.session_state[_PLAN] = plan
    st.session_state.pop(_OUTCOME, None)


def _forget_plan() -> None:
    st.session_state.pop(_PLAN, None)
    st.session_state.pop(_OUTCOME, None)


def _send(context: ViewContext, plan: PlannedChange) -> None:
    """Send a change, and keep the server's answer or error to show it."""
    st.session_state.pop(_PLAN, None)
    try:
        st.session_state[_OUTCOME] = context.client.change(
            dict[str, object],
            plan.method,
            plan.path,
            str(st.session_state.get(_KEY, "")).strip(),
            body=plan.body,
            content=plan.content,
            query=plan.query,
        )
    except ServerError as error:
        st.session_state[_OUTCOME] = error
    else:
        forget_answers()


def _show_outcome() -> None:
    outcome = st.session_state.get(_OUTCOME)
    if isinstance(outcome, ServerError):
        show_error(outcome)
        st.caption(
            "It is not known whether the change was made. Look at the list above."
            if outcome.status is None or outcome.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else "Nothing was changed."
        )
    elif outcome is not None:
        st.success("Done. The server answered:")
        st.code(json.dumps(outcome, indent=2), language="json", wrap_lines=True)
