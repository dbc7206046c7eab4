"""The field that chooses the task of a view: favourites first, then the user's own tasks.

It is one field to search in. With more tasks than `MOST_OPTIONS`, the browser gets the first of
them, and a second field searches in all: a list of 10,000 names would be sent with every click.
Tested by `tests/browser/test_page.py` and `tests/unit/frontend/test_state.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from frontend.glossary import literal, task_words
from frontend.links import opened, share
from frontend.models import TaskInfo
from frontend.state import Catalogue, keep_widget, prepare_widget

MOST_OPTIONS = 200  # in the list of the browser
_TASK = "task"
_SEARCH = "task/search"
_FAVOURITES = "favourites"
_SEPARATOR = ","  # no name of a task contains one


def choose_task(catalogue: Catalogue) -> TaskInfo:
    """Draw the field; return the chosen task, the same one in every view."""
    favourites = _favourites(catalogue)
    tasks = ordered_tasks(catalogue, favourites)
    first = opened(_TASK) if opened(_TASK) in catalogue.by_name else _first(catalogue).name
    prepare_widget(_TASK, first)
    if st.session_state[_TASK] not in catalogue.by_name:  # it is not served any more
        st.session_state[_TASK] = first
    is_long = len(tasks) > MOST_OPTIONS
    widths = [2, 3, 1] if is_long else [5, 1]
    columns = st.columns(widths, vertical_alignment="bottom")
    found = _search(tasks, columns[0]) if is_long else tasks
    with columns[-2]:
        name = st.selectbox(
            _label(len(found), len(tasks)),
            _options(found, st.session_state[_TASK]),
            format_func=lambda name: _option_text(name, name in favourites),
            key=_TASK,
            filter_mode="contains",
        )
    keep_widget(_TASK)
    task = catalogue.by_name[name]
    with columns[-1]:
        _show_favourite(task, favourites)
    share(_TASK, task.name)
    share(_FAVOURITES, _SEPARATOR.join(favourites))
    return task


def _search(tasks: Sequence[TaskInfo], column: DeltaGenerator) -> Sequence[TaskInfo]:
    """Draw the field that searches in all tasks; return those that are found.

    The best one is chosen at once when something new is searched for.
    """

    def choose_best() -> None:
        found = matching(tasks, st.session_state[_SEARCH])
        if found and st.session_state[_SEARCH].strip():
            st.session_state[_TASK] = found[0].name

    prepare_widget(_SEARCH, "")
    text = column.text_input(
        f"Search {len(tasks):,} tasks",
        key=_SEARCH,
        on_change=choose_best,
        placeholder="Part of a name",
    )
    keep_widget(_SEARCH)
    found = matching(tasks, text)
    if not found:
        column.caption(f"No task matches “{literal(text.strip()[:64])}”.")
    return found


def matching(tasks: Sequence[TaskInfo], text: str) -> Sequence[TaskInfo]:
    """Return the tasks that have a text in their name or title, the closest names first."""
    wanted = text.strip().casefold()
    if not wanted:
        return tasks

    def distance(task: TaskInfo) -> int:
        name = task.name.casefold()
        return (name != wanted) + (not name.startswith(wanted))

    found = [
        task
        for task in tasks
        if wanted in task.name.casefold() or wanted in task_words(task.name).heading.casefold()
    ]
    return sorted(found, key=distance)


def _label(num_found: int, num_tasks: int) -> str:
    if num_tasks == 1:
        return "Task"
    if num_tasks <= MOST_OPTIONS:
        return f"Task ({num_tasks:,} to search)"
    shown = min(num_found, MOST_OPTIONS)
    return f"Task ({shown:,} of {num_found:,})" if num_found else "Task"


def _options(found: Sequence[TaskInfo], chosen: str) -> list[str]:
    """Return the names of the list; the chosen one is always among them."""
    names = [task.name for task in found[:MOST_OPTIONS]]
    return names if chosen in names else [chosen, *names]


def ordered_tasks(catalogue: Catalogue, favourites: list[str]) -> list[TaskInfo]:
    """Return the tasks in the order of the list: favourites, own tasks, then the best learnt."""
    names = [*favourites, *catalogue.own_tasks]
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return sorted(catalogue.ranked, key=lambda task: places.get(task.name, len(names)))


def _first(catalogue: Catalogue) -> TaskInfo:
    """Return the task of the first visit: the user's newest, else the one with most strategies."""
    if catalogue.own_tasks:
        return catalogue.by_name[catalogue.own_tasks[0]]
    return max(catalogue.ranked, key=lambda task: len(task.strategies))


def _favourites(catalogue: Catalogue) -> list[str]:
    """Return the names of the favourites that are served."""
    if _FAVOURITES not in st.session_state:
        st.session_state[_FAVOURITES] = opened(_FAVOURITES).split(_SEPARATOR)
    return [name for name in st.session_state[_FAVOURITES] if name in catalogue.by_name]


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
