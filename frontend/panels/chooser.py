"""The field that chooses the task of a view: favourites first, then the user's own tasks.

It is one field to search in, for one task and for thousands.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

import streamlit as st

from frontend.glossary import task_words
from frontend.links import opened, share
from frontend.models import TaskInfo
from frontend.state import Catalogue, keep_widget, prepare_widget

_TASK = "task"
_FAVOURITES = "favourites"
_SEPARATOR = ","  # no name of a task contains one


def choose_task(catalogue: Catalogue) -> TaskInfo:
    """Draw the field; return the chosen task, the same one in every view."""
    favourites = _favourites(catalogue)
    tasks = ordered_tasks(catalogue, favourites)
    by_name = {task.name: task for task in tasks}
    first = opened(_TASK) if opened(_TASK) in by_name else _first(catalogue).name
    prepare_widget(_TASK, first)
    if st.session_state[_TASK] not in by_name:  # it is not served any more
        st.session_state[_TASK] = first
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    with left:
        name = st.selectbox(
            f"Task ({len(tasks):,} to search)" if len(tasks) > 1 else "Task",
            list(by_name),
            format_func=lambda name: _option_text(name, name in favourites),
            key=_TASK,
            filter_mode="contains",
        )
    keep_widget(_TASK)
    task = by_name[name]
    with right:
        _show_favourite(task, favourites)
    share(_TASK, task.name)
    share(_FAVOURITES, _SEPARATOR.join(favourites))
    return task


def ordered_tasks(catalogue: Catalogue, favourites: list[str]) -> list[TaskInfo]:
    """Return the tasks in the order of the list: favourites, own tasks, then the best learnt."""
    names = [*favourites, *catalogue.own_tasks]
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return sorted(catalogue.ranked, key=lambda task: places.get(task.name, len(names)))


def _first(catalogue: Catalogue) -> TaskInfo:
    """Return the task of the first visit: the user's newest, else the one with most strategies."""
    by_name = {task.name: task for task in catalogue.tasks}
    if catalogue.own_tasks:
        return by_name[catalogue.own_tasks[0]]
    return max(catalogue.ranked, key=lambda task: len(task.strategies))


def _favourites(catalogue: Catalogue) -> list[str]:
    """Return the names of the favourites that are served."""
    if _FAVOURITES not in st.session_state:
        st.session_state[_FAVOURITES] = opened(_FAVOURITES).split(_SEPARATOR)
    served = {task.name for task in catalogue.tasks}
    return [name for name in st.session_state[_FAVOURITES] if name in served]


def _show_favourite(task: TaskInfo, favourites: list[str]) -> None:
    is_one = task.name in favourites

    def turn() -> None:
        rest = [name for name in favourites if name != task.name]
        st.session_state[_FAVOURITES] = rest if is_one else [*rest, task.name]

    st.button(
        "Favourite",
        key="favourite",
        icon=":material/star:" if is_one else ":material/star_outline:",
        type="tertiary",
        help="Favourites come first in the list. They are kept in the page's address: "
        "bookmark it to keep them.",
        on_click=turn,
    )


def _option_text(name: str, is_favourite: bool) -> str:
    star = "★ " if is_favourite else ""
    return star + task_words(name).heading
