"""The panel that sends one text to every task that can read it, in one request."""

from __future__ import annotations

import streamlit as st

from frontend.client import Answer, Client, Target
from frontend.examples import shared_example
from frontend.glossary import milliseconds, task_words, value_scale
from frontend.models import TaskInfo
from frontend.panels.cards import Card, card_grid, delta_footer
from frontend.panels.charts import strategy_colors
from frontend.panels.inputs import TextInputs, show_curl, show_error
from frontend.state import Catalogue, ask

_FIELDS = ("text", "text_pair")
_LABELS = ("Text", "Second text")
_ARITY_WORDS = {1: "One text", 2: "A pair of texts"}


def show_fan_out_panel(client: Client, catalogue: Catalogue, *, is_alive: bool) -> None:
    """Draw the panel: the input above, a card for each task below."""
    by_arity: dict[int, list[TaskInfo]] = {}
    for task in catalogue.tasks:
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
    sent = inputs.show(enabled=is_alive, on_send=lambda _: None)
    if sent.is_blank:
        st.caption("Type a text and press Predict.")
        return
    row = dict(zip(_FIELDS, sent.texts, strict=False))
    targets = [Target(task.name) for task in by_arity[arity]]
    result = ask(client, f"fan_out/{arity}", row, targets, again=sent.is_new)
    if result.error is not None:
        show_error(result.error)
    elif result.answer is not None:
        _show_answer(catalogue, result.answer)
    show_curl(client, row, targets)


def _show_answer(catalogue: Catalogue, answer: Answer) -> None:
    colors = strategy_colors([row.strategy for row in catalogue.benchmark.rows])
    cards = [
        Card(
            title=task_words(item.task).heading,
            note=task_words(item.task).question,
            color=colors.get(item.strategy, "gray"),
            prediction=item,
            footer=f"{item.strategy} · "
            + delta_footer(catalogue.row(item.task, item.strategy, item.version), item.version),
            scale=value_scale(item.task),
        )
        for item in answer.predictions
    ]
    st.markdown(f":gray[{len(cards)} tasks in one call, {milliseconds(answer.latency_ms)}]")
    st.html(card_grid(cards, "Predictions of all tasks"))
    cut = [task_words(item.task).title for item in answer.predictions if item.truncated]
    if cut:
        st.warning(f"Only the beginning of the text was used by: {', '.join(cut)}.")
