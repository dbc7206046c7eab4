"""The panel of one task: a text or an example above, the prediction of each strategy below.

Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

import streamlit as st

from frontend.client import Answer, Client, Target
from frontend.examples import Example, examples_of
from frontend.glossary import (
    disagreement,
    label_words,
    milliseconds,
    strategy_words,
    task_words,
    value_scale,
)
from frontend.models import TaskInfo
from frontend.panels.cards import Card, card_grid, delta_footer
from frontend.panels.charts import strategy_colors
from frontend.panels.inputs import TextInputs, show_curl, show_error
from frontend.state import Catalogue, ask


def show_task_panel(
    client: Client, catalogue: Catalogue, task: TaskInfo, *, is_alive: bool
) -> None:
    """Draw the panel."""
    _introduce(task)
    examples = examples_of(task.name, len(task.text_fields))
    inputs = TextInputs(f"task/{task.name}", task.text_fields)
    # On the first visit the fields hold the first example, so that the page shows predictions.
    inputs.prepare(examples[0].texts if examples else ("",) * len(task.text_fields))
    if examples:
        _show_examples(task, examples, inputs)
    sent = inputs.show(
        enabled=is_alive, on_send=lambda texts: _remember_example(task, examples, texts)
    )
    if sent.is_blank:
        st.caption("Type a text and press Predict.")
        return
    row = dict(zip(task.text_fields, sent.texts, strict=True))
    targets = [Target(task.name, strategy) for strategy in task.strategies]
    result = ask(client, f"task/{task.name}", row, targets, again=sent.is_new)
    if result.error is not None:
        show_error(result.error)
    elif result.answer is not None:
        written = next((item.answer for item in examples if item.texts == sent.texts), "")
        _show_answer(catalogue, task, result.answer, written)
    show_curl(client, row, targets)


def _introduce(task: TaskInfo) -> None:
    words = task_words(task.name)
    shape = (
        "a number"
        if task.kind == "regression"
        else ("any of " if task.kind == "multi_label" else "") + f"{len(task.labels)} labels"
    )
    st.header(words.question or words.title, anchor=False)
    st.caption(f"`{task.name}` · answers with {shape} · reads {task.max_length} tokens")


def _example_key(task: TaskInfo) -> str:
    return f"example/{task.name}"


def _show_examples(task: TaskInfo, examples: tuple[Example, ...], inputs: TextInputs) -> None:
    key = _example_key(task)

    def fill() -> None:
        index = st.session_state[key]
        if index is not None:
            inputs.fill(examples[index].texts)

    st.session_state.setdefault(key, 0)
    st.selectbox(
        "Example",
        range(len(examples)),
        format_func=lambda index: examples[index].title,
        key=key,
        index=None,
        placeholder="Your own text; pick an example to replace it",
        on_change=fill,
        persist_state="session",
    )


def _remember_example(
    task: TaskInfo, examples: tuple[Example, ...], texts: tuple[str, ...]
) -> None:
    """Select the sent example in the list; select nothing if the user typed another text."""
    known = [item.texts for item in examples]
    if known:
        st.session_state[_example_key(task)] = known.index(texts) if texts in known else None


def _show_answer(catalogue: Catalogue, task: TaskInfo, answer: Answer, written: str) -> None:
    scale = value_scale(task.name)
    colors = strategy_colors([row.strategy for row in catalogue.benchmark.rows])
    cards = [
        Card(
            title=item.strategy,
            note=strategy_words(item.strategy),
            color=colors.get(item.strategy, "gray"),
            prediction=item,
            footer=delta_footer(
                catalogue.row(item.task, item.strategy, item.version), item.version
            ),
            scale=scale,
        )
        for item in answer.predictions
    ]
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        several = f"{len(cards)} strategies" if len(cards) != 1 else "1 strategy"
        st.markdown(
            f":gray[{several} in one call, {milliseconds(answer.latency_ms)}]", width="content"
        )
        verdict = disagreement(answer.predictions, scale)
        if verdict:
            st.badge(verdict, color="orange")
        if written:
            st.badge(f"Expected: {label_words(written)}", color="gray")
    st.html(card_grid(cards, f"Predictions for {task.name}"))
    if any(item.truncated for item in answer.predictions):
        st.warning(
            f"The text is longer than the {task.max_length} tokens that {task.name} reads; "
            "only its beginning was used."
        )
