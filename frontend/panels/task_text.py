"""The text of a task: its question, its examples, and the fields that Try and Why share.

A text that is typed in one view is there in the other, and in the page's address.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from itertools import zip_longest

import streamlit as st

from frontend.glossary import Example, examples_of, literal, task_words
from frontend.links import opened, share
from frontend.models import TaskInfo
from frontend.panels.inputs import Sent, TextInputs
from frontend.state import Catalogue, ViewContext, keep_widget, prepare_widget

FIELDS = ("text", "text_pair")  # names that every task understands
_LEARNT = 0.2  # of the way from guessing to the best score; WNLI has 0.13, RTE 0.3


def show_heading(catalogue: Catalogue, task: TaskInfo) -> None:
    """Draw the question that a task answers, and what is known about the task."""
    words, about = task_words(task.name), task.about
    st.header((about.question if about else "") or words.question or words.title, anchor=False)
    if about and about.description:
        st.markdown(literal(about.description))
    shape = "a number" if task.kind == "regression" else f"{len(task.labels)} labels"
    shape = f"any of {shape}" if task.kind == "multi_label" else shape
    st.caption(f"`{task.name}` · answers with {shape} · reads {task.max_length} tokens")
    skill = catalogue.skill(task)
    if skill is not None and skill < _LEARNT:
        st.badge("Hardly learnt: its answers are little better than guesses.", color="orange")


def show_texts(context: ViewContext, task: TaskInfo, action: str) -> tuple[Sent, str]:
    """Draw examples and fields; return the sent texts, and the answer that an example expects.

    Args:
        context: the server as the view sees it.
        task: task of the texts.
        action: word on the button.
    """
    examples = task_examples(task)
    inputs = task_inputs(task)
    # On the first visit the fields hold the first example, so that the page shows an answer.
    first = examples[0].texts if examples else ("",) * len(task.text_fields)
    inputs.prepare(_opened_texts(task) or first)
    if examples:
        _show_examples(task, examples, inputs)
    sent = inputs.show(
        action,
        enabled=context.is_alive,
        on_send=lambda texts: _remember_example(task, examples, texts),
    )
    for name, text in zip_longest(FIELDS, sent.texts, fillvalue=""):
        share(name, text)
    return sent, next((item.answer for item in examples if item.texts == sent.texts), "")


def task_inputs(task: TaskInfo) -> TextInputs:
    """Return the text fields of a task, the same ones in every view."""
    return TextInputs(f"task/{task.name}", task.text_fields)


def task_examples(task: TaskInfo) -> tuple[Example, ...]:
    """Return the examples of the task's author, followed by those of the page."""
    count = len(task.text_fields)
    given = task.about.examples if task.about else ()
    own = tuple(Example(item.texts, item.answer) for item in given if len(item.texts) == count)
    return own + examples_of(task.name, count)


def _opened_texts(task: TaskInfo) -> tuple[str, ...]:
    """Return the texts of the address with which the session was opened, if they are the task's."""
    texts = tuple(opened(name) for name in FIELDS[: len(task.text_fields)])
    return texts if opened("task") == task.name and any(texts) else ()


def _show_examples(task: TaskInfo, examples: tuple[Example, ...], inputs: TextInputs) -> None:
    key = _example_key(task)

    def fill() -> None:
        index = st.session_state[key]
        if index is not None:
            inputs.fill(examples[index].texts)

    known = [item.texts for item in examples]
    sent = inputs.sent
    prepare_widget(key, known.index(sent) if sent in known else None)
    st.selectbox(
        "Example",
        range(len(examples)),
        format_func=lambda index: examples[index].title,
        key=key,
        index=None,
        placeholder="Your own text; pick an example to replace it",
        on_change=fill,
    )
    keep_widget(key)


def _remember_example(
    task: TaskInfo, examples: tuple[Example, ...], texts: tuple[str, ...]
) -> None:
    """Select the sent example in the list; select nothing if the user typed another text."""
    known = [item.texts for item in examples]
    if known:
        st.session_state[_example_key(task)] = known.index(texts) if texts in known else None


def _example_key(task: TaskInfo) -> str:
    return f"example/{task.name}"
