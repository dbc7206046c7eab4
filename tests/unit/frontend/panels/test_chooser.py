"""The field of the task: everything at once for hundreds, a search on the server for thousands."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from frontend.panels.chooser import MOST_OPTIONS, matching
from frontend.state import Catalogue
from tests.unit.frontend.test_state import catalogue, row, task

MANY = 10_000


def many_tasks() -> Catalogue:
    """A catalogue of 10,000 tasks, whose last one is the best learnt."""
    names = [f"customer{number:05d}" for number in range(MANY)]
    return catalogue([task(name) for name in names], row(names[-1], 0.9))


def draw() -> None:
    """Draw the field as a view does; Streamlit runs the text of this function."""
    import streamlit as st

    from frontend.panels.chooser import choose_task

    st.text(choose_task(st.session_state["known"]).name)


@pytest.fixture
def page() -> AppTest:
    """The field with 10,000 tasks."""
    page = AppTest.from_function(draw, default_timeout=60)
    page.session_state["known"] = many_tasks()
    return run(page)


def run(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception
    return page


def search(page: AppTest, text: str) -> AppTest:
    page.text_input[0].set_value(text)
    return run(page)


def test_the_browser_gets_few_of_many_names(page: AppTest) -> None:
    (box,) = page.selectbox
    assert box.label == "Task (200 of 10,000)"
    assert len(box.options) == MOST_OPTIONS
    assert (box.options[0], page.text[0].value) == ("customer09999", "customer09999")
    assert len(box.proto.SerializeToString()) < 10_000
    assert page.text_input[0].label == "Search 10,000 tasks"


def test_a_search_finds_any_task_and_chooses_the_closest(page: AppTest) -> None:
    search(page, "R0432")
    assert page.text[0].value == "customer04320"
    assert page.selectbox[0].label == "Task (10 of 10)"
    page.selectbox[0].select("customer04327")
    assert run(page).text[0].value == "customer04327", "the search does not choose again"
    search(page, "")
    assert page.text[0].value == "customer04327"
    assert page.selectbox[0].options[0] == "customer04327", "the chosen one is in the list"
    search(page, "nothing like it")
    assert page.text[0].value == "customer04327"
    assert "No task matches “nothing like it”." in [each.value for each in page.caption]


def test_hundreds_of_tasks_need_no_second_field() -> None:
    page = AppTest.from_function(draw, default_timeout=60)
    page.session_state["known"] = catalogue([task(f"task{n}") for n in range(MOST_OPTIONS)])
    run(page)
    assert not page.text_input
    assert page.selectbox[0].label == "Task (200 to search)"
    assert len(page.selectbox[0].options) == MOST_OPTIONS


def test_the_closest_names_come_first_and_titles_count_too() -> None:
    tasks = [task(name) for name in ("my_cola", "cola_2", "cola", "mnli")]
    assert [found.name for found in matching(tasks, " COLA ")] == ["cola", "cola_2", "my_cola"]
    assert [found.name for found in matching(tasks, "inference")] == ["mnli"]
    assert matching(tasks, " ") == tasks
