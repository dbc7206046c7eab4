"""The view Table: a pasted or uploaded CSV comes back labelled, to correct, compare and download.

Tested by `tests/browser/test_words_and_tables.py`, the work on the rows by
`tests/unit/frontend/views/test_rows.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from frontend.client import Client
from frontend.errors import ServerError, UnreachableError
from frontend.glossary import literal, percent
from frontend.links import opened, share
from frontend.models import TaskInfo
from frontend.panels.chooser import choose_task
from frontend.panels.inputs import show_error
from frontend.state import ViewContext, keep_widget, prepare_widget
from frontend.views.labelling import Labelling
from frontend.views.rows import (
    MAX_MEGABYTES,
    TRAINING_FILE,
    Labelled,
    TableError,
    TrainingRows,
    accuracy,
    cell_text,
    confusion,
    free_name,
    given_label,
    label_column,
    mistakes,
    read_table,
    right_and_wrong,
    spreadsheet_csv,
    text_column,
)

_NO_COLUMN = "none"
_LINE_PIXELS, _MOST_PIXELS = 35, 460  # of a row, and of the editor
_CORRECT, _DOUBT = "correct label", "doubt"
_NUMBER = "table/number"
_MANY_LABELS = 12  # whose confusion is listed, as its table does not fit


@dataclass(frozen=True)
class Result:
    """A labelled table."""

    table: pd.DataFrame
    correct: str  # name of the column to correct
    texts: tuple[str, ...]  # columns of the texts, in the order of the task's fields
    labelled: tuple[Labelled, ...]  # the first strategy's labels are the ones to correct
    problem: ServerError | None  # why not all rows are labelled
    number: int  # of the labelling; Streamlit would give a later table the corrections of this one


def show_table(context: ViewContext) -> None:
    """Draw the view."""
    task = choose_task(context.catalogue)
    st.header("Label a whole table", anchor=False)
    st.caption(
        "Paste rows or choose a file. The first line names the columns. "
        "A reload of the page loses the table and its labels; download them first."
    )
    data = _given_table()
    if data is None:
        return
    try:
        table = read_table(data)
    except TableError as error:
        st.error(literal(str(error)))
        return
    st.caption(f"{len(table):,} rows, {len(table.columns)} columns")
    texts, strategies = _choose(task, table)
    request = data, texts, tuple(strategies), task.name
    if st.button(
        f"Label {len(table):,} rows",
        type="primary",
        disabled=not context.is_alive or not strategies,
        key="table/label",
    ):
        result = _label(context.client, task, table, texts, strategies)
        st.session_state["table/result"] = request, result
    known = st.session_state.get("table/result")
    if known is not None and known[0] == request:
        _show_result(task, known[1])


def _given_table() -> bytes | None:
    """Draw the fields; return the file, or else the pasted text."""
    left, right = st.columns(2, gap="medium")
    pasted = left.text_area(
        "Paste a table",
        key="table/pasted",
        height=132,
        placeholder="text,label\nThe soup was cold.,negative\nA delight.,positive",
        persist_state="session",
    )
    chosen = right.file_uploader(
        "Or choose a CSV file",
        type=["csv", "tsv", "txt"],
        max_upload_size=MAX_MEGABYTES,
        key="table/file",
    )
    if chosen is not None:
        return bytes(chosen.getvalue())
    return pasted.encode() if pasted and pasted.strip() else None


def _choose(task: TaskInfo, table: pd.DataFrame) -> tuple[tuple[str, ...], list[str]]:
    """Draw the choice of columns and strategies; return both."""
    names = [str(name) for name in table.columns]
    columns = st.columns(len(task.text_fields) + 1)
    texts = []
    for place, field in enumerate(task.text_fields):
        longest = text_column(table)
        usual = field if field in names else longest if place == 0 else names[place % len(names)]
        label = "Text column" if len(task.text_fields) == 1 else f"Column of {field}"
        texts.append(
            columns[place].selectbox(
                label, names, index=names.index(usual), key=f"table/{task.name}/{field}/{names}"
            )
        )
    wanted = [name for name in opened("strategies").split(" ") if name in task.strategies]
    key = f"table/strategies/{task.name}"
    prepare_widget(key, wanted or [task.strategies[0]])
    strategies = columns[-1].multiselect(
        "Strategies, the first one labels",
        task.strategies,
        key=key,
    )
    keep_widget(key)
    share("strategies", " ".join(strategies))
    return tuple(texts), strategies


def _label(
    client: Client,
    task: TaskInfo,
    table: pd.DataFrame,
    texts: tuple[str, ...],
    strategies: Sequence[str],
) -> Result:
    """Send the rows by chunks, with progress; a row that can't be used harms no other one."""
    cells = [table[name].fillna("").tolist() for name in texts]
    rows = [dict(zip(task.text_fields, row, strict=True)) for row in zip(*cells, strict=True)]
    labelling = Labelling(client, task.name, rows, strategies)
    progress = st.progress(0.0, "Labelling ...")
    for done in labelling.steps():
        progress.progress(done / len(rows), f"{done:,} of {len(rows):,} rows")
    if isinstance(labelling.problem, UnreachableError):
        st.session_state["waiting"] = True
    progress.empty()
    labelled = tuple(Labelled(name, tuple(answers)) for name, answers in labelling.found.items())
    correct = free_name(_CORRECT, map(str, table.columns))
    number = st.session_state.get(_NUMBER, 0) + 1
    st.session_state[_NUMBER] = number
    return Result(table, correct, texts, labelled, labelling.problem, number)


def _show_result(task: TaskInfo, result: Result) -> None:
    first = result.labelled[0]
    missing = sum(item is None for item in first.predictions)
    if result.problem is not None:
        show_error(result.problem)
    if missing:
        st.warning(
            f"{missing:,} of {len(result.table):,} rows have no label: their text is empty or too "
            "long, or the server stopped answering. Press the button again to try once more."
        )
    edited = _show_editor(task, result)
    _show_download(task, result, edited)
    _show_comparison(task, result)


def _show_editor(task: TaskInfo, result: Result) -> pd.DataFrame:
    """Draw the labelled rows, the most doubtful ones first; return them with the corrections."""
    is_value = task.kind == "regression"  # a value has no probability
    dtype = "float64" if is_value else "object"
    first = result.labelled[0]
    shown, correct = result.table.copy(), result.correct
    for labelled in result.labelled:
        name = free_name(f"label ({labelled.strategy})", shown.columns)
        shown[name] = pd.Series(labelled.answers if is_value else labelled.labels, dtype=dtype)
    doubt = free_name(_DOUBT, shown.columns)
    shown[correct] = pd.Series(first.answers, dtype=dtype)
    if not is_value:
        shown[doubt] = first.doubts
        shown = shown.sort_values(doubt, ascending=False, na_position="first", kind="stable")
    edited = st.data_editor(
        shown,
        hide_index=True,
        width="stretch",
        height=min(_MOST_PIXELS, _LINE_PIXELS * (len(shown) + 1) + 3),
        disabled=[name for name in shown.columns if name != correct],
        # Next to each other, so that text and label are in view on a phone.
        column_order=list(
            dict.fromkeys((*result.texts, correct, *([] if is_value else [doubt]), *shown))
        ),
        column_config={
            **{name: st.column_config.Column(width="medium") for name in result.texts},
            correct: _label_cells(task, correct),
            doubt: st.column_config.ProgressColumn(doubt, min_value=0, max_value=1),
        },
        key=f"table/editor/{result.number}",
        alt="Labelled rows" if is_value else "Labelled rows, the most doubtful ones first",
    )
    order = "The most doubtful rows come first: doubt is 1 minus the probability of the label. "
    st.caption(f"{'' if is_value else order}Correct them in the column “{correct}”.")
    return edited.sort_index()


def _label_cells(task: TaskInfo, name: str) -> Any:
    """Return the editor of labels, which takes no others than those of the task."""
    if task.kind == "regression":
        return st.column_config.NumberColumn(name, format="plain")
    if task.kind == "multi_label":
        return st.column_config.MultiselectColumn(name, options=list(task.labels))
    return st.column_config.SelectboxColumn(name, options=list(task.labels))


def _show_download(task: TaskInfo, result: Result, edited: pd.DataFrame) -> None:
    """Draw the downloads: CSV for spreadsheets, and rows to train on with their command."""
    first, cells = result.labelled[0].answers, edited[result.correct]
    labels = [given_label(task.kind, *each) for each in zip(cells, first, strict=True)]
    changed = sum(label != answer for label, answer in zip(labels, first, strict=True))
    is_text = task.kind != "regression"
    written = pd.Series(list(map(cell_text, labels)) if is_text else labels, index=edited.index)
    left, right = st.columns([1, 3], vertical_alignment="center")
    left.download_button(
        "Download CSV",
        spreadsheet_csv(edited.assign(**{result.correct: written})),
        file_name="labelled.csv",
        mime="text/csv",
        on_click="ignore",
        width="stretch",
    )
    right.caption(
        f"For spreadsheets: all rows in their first order, {changed:,} corrected. Cells that a "
        "spreadsheet would take for formulas begin with an apostrophe."
    )
    texts = [result.table[name].tolist() for name in result.texts]
    columns = *result.texts, result.correct
    _show_training(TrainingRows(task, columns, list(zip(*texts, strict=True)), labels))


def _show_training(rows: TrainingRows) -> None:
    st.markdown("Train a delta on the corrected rows:")
    left, right = st.columns([1, 3], vertical_alignment="center")
    left.download_button(
        "Download rows to train on",
        rows.json_lines,
        file_name=TRAINING_FILE,
        mime="application/x-ndjson",
        on_click="ignore",
        disabled=not rows.num_rows,
        width="stretch",
    )
    missing = len(rows.labels) - rows.num_rows
    verb = "is" if missing == 1 else "are"
    left_out = f" {missing:,} without a label {verb} left out." if missing else ""
    right.caption(
        f"{rows.num_rows:,} rows with their labels, exactly as you gave them.{left_out} The "
        "command reads this file."
    )
    st.code(rows.command, language="bash", wrap_lines=True)


def _show_comparison(task: TaskInfo, result: Result) -> None:
    """Draw how strategies do against a column of right labels, if the table has one."""
    if task.kind == "regression":
        return
    names = [name for name in map(str, result.table.columns) if name not in result.texts]
    usual = label_column(result.table[names], task.labels) if names else None
    options = [_NO_COLUMN, *names]
    st.subheader("Against the right labels", anchor=False)
    column = st.selectbox(
        "Column with the right labels",
        options,
        index=options.index(usual) if usual else 0,
        key=f"table/gold/{names}",
    )
    if column == _NO_COLUMN:
        st.caption("If a column has the right labels, the strategies are measured against it.")
        return
    gold = result.table[column].fillna("").str.strip().tolist()
    by_name = {labelled.strategy: labelled.labels for labelled in result.labelled}
    scores = {name: accuracy(labels, gold) for name, labels in by_name.items()}
    for place, (name, score) in zip(st.columns(len(scores)), scores.items(), strict=True):
        place.metric(f"Accuracy of {name}", percent(score), border=True)
    name = st.selectbox("Confusion of", list(by_name), key="table/confusion")
    counts = confusion(by_name[name], gold)
    if len(counts) > _MANY_LABELS:
        st.dataframe(mistakes(by_name[name], gold), hide_index=True, alt=f"Mistakes of {name}")
        st.caption("Mistakes, the most frequent first.")
    else:
        st.dataframe(counts, alt=f"Right labels against labels of {name}")
        st.caption("Rows are right labels, columns are given ones.")
    if len(by_name) > 1:
        _show_differences(result, by_name, gold)


def _show_differences(result: Result, by_name: dict[str, list[str]], gold: Sequence[str]) -> None:
    left, right = st.columns(2)
    names = list(by_name)
    one = left.selectbox("Right", names, key="table/right")
    other = right.selectbox("and wrong", names, index=1, key="table/wrong")
    places = right_and_wrong(by_name[one], by_name[other], gold)
    st.markdown(f"{len(places):,} rows that {literal(one)} gets right and {literal(other)} wrong")
    if places:
        shown = result.table.iloc[places].copy()
        for name in dict.fromkeys((one, other)):
            column = free_name(f"label ({name})", shown.columns)
            shown[column] = [by_name[name][place] for place in places]
        st.dataframe(shown, hide_index=True, width="stretch", alt="Rows that differ")
