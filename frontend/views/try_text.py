"""The view Try: one text, and the answer of every strategy of a task, or of every task.

Text fields stand above, a card for each delta below.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from frontend.client import Answer, Client, Target, curl_command, fan_out_body
from frontend.glossary import (
    disagreement,
    label_words,
    milliseconds,
    shared_example,
    strategy_words,
    task_words,
    value_scale,
)
from frontend.links import opened_choice, share
from frontend.models import Prediction, TaskInfo
from frontend.panels.cards import Card, card_grid, delta_footer
from frontend.panels.charts import strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.inputs import Sent, TextInputs, show_error
from frontend.panels.task_text import FIELDS, show_heading, show_texts, task_inputs
from frontend.state import Catalogue, ViewContext, ask, keep_widget, prepare_widget

_LABELS = ("Text", "Second text")
_SCOPES = {"task": "One task, every strategy", "all": "Every task"}
_MAX_TARGETS = 256  # that one request may have
_MAX_TASKS = 24  # more cards than anyone compares
_ARITY_WORDS = {1: "One text", 2: "A pair of texts"}


def show_try(context: ViewContext) -> None:
    """Draw the view."""
    scopes = list(_SCOPES)
    prepare_widget("ask", opened_choice("ask", scopes))
    scope = st.segmented_control(
        "Ask",
        scopes,
        required=True,
        format_func=_SCOPES.__getitem__,
        key="ask",
        label_visibility="collapsed",
    )
    keep_widget("ask")
    share("ask", scope if scope and scope != scopes[0] else "")
    if scope == scopes[0]:
        _show_one_task(context)
    else:
        _show_every_task(context)


def _show_one_task(context: ViewContext) -> None:
    catalogue = context.catalogue
    task = choose_task(catalogue)
    show_heading(catalogue, task)
    sent, expected = show_texts(context, task, "Predict")
    targets = [Target(task.name, strategy) for strategy in task.strategies[:_MAX_TARGETS]]
    _predict(
        context.client,
        task_inputs(task),
        sent,
        task.text_fields,
        targets,
        lambda answer: _show_strategies(catalogue, task, answer, expected),
    )


def _show_every_task(context: ViewContext) -> None:
    catalogue = context.catalogue
    by_arity: dict[int, list[TaskInfo]] = {}
    for task in catalogue.ranked:
        by_arity.setdefault(len(task.text_fields), []).append(task)
    arities = sorted(arity for arity in by_arity if arity in _ARITY_WORDS)
    st.markdown(
        "**Ask every task at once.** The backbone reads the text in one forward pass; "
        "each task lays its own delta over it."
    )
    arity = st.segmented_control(
        "Kind of input",
        arities,
        default=arities[-1],
        required=True,
        format_func=lambda count: f"{_ARITY_WORDS[count]} · {len(by_arity[count])} tasks",
        key="fan_out/arity",
        label_visibility="collapsed",
        persist_state="session",
    )
    inputs = TextInputs(f"fan_out/{arity}", _LABELS[:arity])
    inputs.prepare(shared_example(arity))
    sent = inputs.show("Predict", enabled=context.is_alive, on_send=lambda _: None)
    asked = by_arity[arity][:_MAX_TASKS]
    if len(asked) < len(by_arity[arity]):
        st.caption(f"The {_MAX_TASKS} best learnt of {len(by_arity[arity]):,} tasks are asked.")
    targets = [Target(task.name) for task in asked]
    _predict(
        context.client,
        inputs,
        sent,
        FIELDS[:arity],
        targets,
        lambda answer: _show_tasks(catalogue, answer),
    )


def _predict(
    client: Client,
    inputs: TextInputs,
    sent: Sent,
    fields: Sequence[str],
    targets: Sequence[Target],
    show: Callable[[Answer], None],
) -> None:
    """Ask the targets about the sent texts; show the answer, and the request as a command."""
    if not any(text.strip() for text in sent.texts):
        st.caption("Type a text and press Predict.")
        return
    if sent.is_outdated:
        st.caption("The text has changed. Press Predict for its answer.")
        return
    row = dict(zip(fields, sent.texts, strict=True))
    result = ask(client, inputs.panel, row, targets, again=sent.is_new)
    if result.error is not None:
        show_error(result.error)
    elif result.answer is not None:
        show(result.answer)
    with st.expander("The same request with curl"):
        command = curl_command(client.url, "/predict", fan_out_body(row, targets))
        st.code(command, language="bash", wrap_lines=True)


def _show_strategies(catalogue: Catalogue, task: TaskInfo, answer: Answer, expected: str) -> None:
    cards = [
        _card(catalogue, item, item.strategy, strategy_words(item.strategy))
        for item in answer.predictions
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        several = f"{len(cards)} strategies" if len(cards) != 1 else "1 strategy"
        st.markdown(
            f":gray[{several} in one call, {milliseconds(answer.latency_ms)}]", width="content"
        )
        verdict = disagreement(answer.predictions, value_scale(task.name))
        if verdict:
            st.badge(verdict, color="orange")
        elif len(cards) > 1 and task.kind != "regression":
            st.badge("All strategies agree", color="green")
        if expected:
            st.badge(f"Expected: {label_words(expected)}", color="gray")
    st.html(card_grid(cards, f"Predictions for {task.name}"))
    if any(item.truncated for item in answer.predictions):
        st.warning(
            f"The text is longer than the {task.max_length} tokens that {task.name} reads; "
            "only its beginning was used."
        )


def _show_tasks(catalogue: Catalogue, answer: Answer) -> None:
    cards = [
        _card(
            catalogue,
            item,
            task_words(item.task).heading,
            task_words(item.task).question,
            lead=f"{item.strategy} · ",
        )
        for item in answer.predictions
    ]
    st.markdown(f":gray[{len(cards)} tasks in one call, {milliseconds(answer.latency_ms)}]")
    st.html(card_grid(cards, "Predictions of all tasks"))
    cut = [task_words(item.task).title for item in answer.predictions if item.truncated]
    if cut:
        st.warning(f"Only the beginning of the text was used by: {', '.join(cut)}.")


def _card(catalogue: Catalogue, item: Prediction, title: str, note: str, lead: str = "") -> Card:
    colors = strategy_colors([row.strategy for row in catalogue.benchmark.rows])
    row = catalogue.row(item.task, item.strategy, item.version)
    return Card(
        title=title,
        note=note,
        color=colors.get(item.strategy, "gray"),
        prediction=item,
        footer=lead + delta_footer(row, item.version, catalogue.studied(item)),
        scale=value_scale(item.task),
    )
