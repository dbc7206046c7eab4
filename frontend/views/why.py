"""The view Why: the words of a text, coloured by the probability that is lost without them.

Tested by `tests/browser/test_words_and_tables.py`.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from frontend.client import curl_command
from frontend.errors import ServerError, UnreachableError
from frontend.glossary import label_words, literal
from frontend.links import opened, share
from frontend.models import Explanation, TaskInfo
from frontend.panels.charts import strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.inputs import show_error
from frontend.panels.task_text import show_heading, show_texts
from frontend.panels.words import (
    agreement_sentence,
    coloured_texts,
    legend,
    loss_records,
    strongest_sentence,
)
from frontend.state import ViewContext, keep_widget, prepare_widget

_MOST_DECIDED = ""  # the choice of no label: the server takes the one that most strategies find
_NOT_FOUND = 404


def show_why(context: ViewContext) -> None:
    """Draw the view."""
    task = choose_task(context.catalogue)
    show_heading(context.catalogue, task)
    sent, _ = show_texts(context, task, "Explain")
    label = _choose_label(task)
    if not any(text.strip() for text in sent.texts):
        st.caption("Type a text and press Explain.")
        return
    if sent.is_outdated:
        st.caption("The text has changed. Press Explain for its answer.")
        return
    row = dict(zip(task.text_fields, sent.texts, strict=True))
    explanation = _ask(context, task, row, label)
    if explanation is not None:
        _show(context, explanation, row)
    with st.expander("The same request with curl"):
        body = {"inputs": row} | ({"label": label} if label else {})
        st.code(
            curl_command(context.client.url, f"/explain/{task.name}", body),
            language="bash",
            wrap_lines=True,
        )


def _choose_label(task: TaskInfo) -> str:
    """Draw the choice of the label to explain; return it, or an empty text for the usual one."""
    if not task.labels:
        share("label", "")
        return _MOST_DECIDED
    key, options = f"why/label/{task.name}", [_MOST_DECIDED, *task.labels]
    wanted = opened("label")
    prepare_widget(key, wanted if wanted in task.labels else _MOST_DECIDED)
    label = st.selectbox(
        "Explain the probability of",
        options,
        format_func=lambda name: label_words(name) if name else "the predicted label",
        key=key,
        filter_mode="contains",
    )
    keep_widget(key)
    share("label", label)
    return label


def _ask(
    context: ViewContext, task: TaskInfo, row: dict[str, str], label: str
) -> Explanation | None:
    """Return the explanation of a row, from the session if it was the last one asked for."""
    request = task.name, tuple(row.items()), label, task.strategies
    known = st.session_state.get("why/result")
    if known is not None and known[0] == request:
        found: Explanation = known[1]
        return found
    try:
        with st.spinner("Leaving out each word ..."):
            found = context.client.explain(task.name, row, label or None)
    except ServerError as error:
        if isinstance(error, UnreachableError):
            st.session_state["waiting"] = True
        if error.status == _NOT_FOUND:
            st.info("This server can't explain yet; a newer version of it can.")
        show_error(error)
        return None
    st.session_state["why/result"] = request, found
    return found


def _show(context: ViewContext, found: Explanation, row: dict[str, str]) -> None:
    colors = strategy_colors([item.strategy for item in context.catalogue.benchmark.rows])
    label = label_words(found.label) if found.label is not None else None
    st.markdown(f"**{literal(strongest_sentence(found))}** {literal(agreement_sentence(found))}")
    st.html(legend(label))
    parts = [
        coloured_texts(found, result, row, colors.get(result.strategy, "gray"))
        for result in found.results
    ]
    st.html(f'<section aria-label="Words by strategy">{"".join(parts)}</section>')
    st.subheader("The same as numbers", anchor=False)
    records = loss_records(found, is_pair=len(row) > 1)
    number = st.column_config.NumberColumn(format="%+.3f")
    st.dataframe(
        pd.DataFrame(records),
        column_config={result.strategy: number for result in found.results},
        hide_index=True,
        width="stretch",
        alt="Probability lost without each word, by strategy",
    )
    of = f"the probability of {literal(label)}" if label is not None else "the value"
    st.caption(
        f"Each number is {of} with the word minus the same without it; a negative number speaks "
        "against. Words act together, so the numbers need not add up. The whole text gives "
        + ", ".join(f"{literal(item.strategy)} {item.score:.3f}" for item in found.results)
        + "."
    )
