"""The view Try: one text, and the answer of every strategy of a task, or of every task.

Text fields stand above, a card for each delta below.
Tested by `tests/browser/test_page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import streamlit as st

from frontend.client import Answer, Client, Target, curl_command, fan_out_body
from frontend.glossary import (
    Example,
    disagreement,
    examples_of,
    label_words,
    milliseconds,
    shared_example,
    strategy_words,
    task_words,
    value_scale,
)
from frontend.links import opened, opened_choice, share
from frontend.models import Prediction, TaskInfo
from frontend.panels.cards import Card, card_grid, delta_footer
from frontend.panels.charts import strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.inputs import Sent, TextInputs, show_error
from frontend.state import Catalogue, ViewContext, ask

_FIELDS = ("text", "text_pair")  # names that every task understands
_LABELS = ("Text", "Second text")
_SCOPES = {"task": "One task, every strategy", "all": "Every task"}
_LEARNT = 0.2  # of the way from guessing to the best score; WNLI has 0.13, RTE 0.3
_ARITY_WORDS = {1: "One text", 2: "A pair of texts"}


def show_try(context: ViewContext) -> None:
    """Draw the view."""
    scopes = list(_SCOPES)
    st.session_state.setdefault("ask", opened_choice("ask", scopes))
    scope = st.segmented_control(
        "Ask",
        scopes,
        required=True,
        format_func=_SCOPES.__getitem__,
        key="ask",
        label_visibility="collapsed",
        persist_state="session",
    )
    share("ask", scope if scope and scope != scopes[0] else "")
    if scope == scopes[0]:
        _show_one_task(context)
    else:
        _show_every_task(context)


def _show_one_task(context: ViewContext) -> None:
    catalogue = context.catalogue
    task = choose_task(catalogue)
    words = task_words(task.name)
    shape = "a number" if task.kind == "regression" else f"{len(task.labels)} labels"
    shape = f"any of {shape}" if task.kind == "multi_label" else shape
    st.header(words.question or words.title, anchor=False)
    st.caption(f"`{task.name}` · answers with {shape} · reads {task.max_length} tokens")
    skill = catalogue.skill(task)
    if skill is not None and skill < _LEARNT:
        st.caption(":orange[Hardly learnt: its answers are little better than guesses.]")
    examples = examples_of(task.name, len(task.text_fields))
    inputs = TextInputs(f"task/{task.name}", task.text_fields)
    # On the first visit the fields hold the first example, so that the page shows predictions.
    first = examples[0].texts if examples else ("",) * len(task.text_fields)
    inputs.prepare(_opened_texts(task) or first)
    if examples:
        _show_examples(task, examples, inputs)
    sent = inputs.show(
        enabled=context.is_alive, on_send=lambda texts: _remember_example(task, examples, texts)
    )
    targets = [Target(task.name, strategy) for strategy in task.strategies]

    def show(answer: Answer) -> None:
        expected = next((item.answer for item in examples if item.texts == sent.texts), "")
        _show_strategies(catalogue, task, answer, expected)

    _share_texts(sent.texts)
    _predict(context.client, inputs, sent, task.text_fields, targets, show)


def _opened_texts(task: TaskInfo) -> tuple[str, ...]:
    """Return the texts of the address with which the session was opened, if they are the task's."""
    texts = tuple(opened(name) for name in _FIELDS[: len(task.text_fields)])
    return texts if opened("task") == task.name and any(texts) else ()


def _share_texts(texts: tuple[str, ...]) -> None:
    for name, text in zip_longest(_FIELDS, texts, fillvalue=""):
        share(name, text)


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
    sent = inputs.show(enabled=context.is_alive, on_send=lambda _: None)
    targets = [Target(task.name) for task in by_arity[arity]]
    _predict(
        context.client,
        inputs,
        sent,
        _FIELDS[:arity],
        targets,
        lambda answer: _show_tasks(catalogue, answer),
    )


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


def _example_key(task: TaskInfo) -> str:
    return f"example/{task.name}"


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
        footer=lead + delta_footer(row, item.version),
        scale=value_scale(item.task),
    )
