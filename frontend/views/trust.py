"""The view Trust: how far a delta's answers can be relied on, from the predictions of its run.

The rows are shown by their numbers in the data, never by their texts, which nothing here knows.
`frontend.reports.trust` computes the numbers. Tested by `tests/browser/test_reports.py`.
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from frontend.errors import ServerError
from frontend.glossary import label_words, literal, percent
from frontend.links import opened, share
from frontend.models import DeltaDetails, TaskInfo
from frontend.panels.charts import strategy_colors
from frontend.panels.chooser import choose_task
from frontend.panels.details import reliability_sentences, show_details
from frontend.panels.inputs import show_error
from frontend.reports.answers import (
    Predictions,
    has_no_predictions,
    is_missing,
    predictions_of,
    read_upload,
)
from frontend.reports.charts import calibration_chart, risk_chart, value_chart
from frontend.reports.trust import (
    Judged,
    accuracy,
    confusion,
    label_scores,
    largest_confusion,
    mistakes,
    reliability,
    risk_coverage,
    rows_of_cell,
    value_errors,
)
from frontend.state import ViewContext, load_delta

_MAX_CELLS = 40_000  # of the confusion matrix; more labels are listed by their mistakes
_MANY_LABELS = 12  # whose matrix does not fit: the mistakes are listed, the worst label first
_MAX_WORDS = 60  # characters of a label in a sentence
_MAX_SHOWN_ROWS = 100
_MAX_DOTS = 2000
_BOUNDED_RISK = 0.05


def show_trust(context: ViewContext) -> None:
    """Draw the view."""
    task = choose_task(context.catalogue)
    st.header("Can you rely on its answers?", anchor=False)
    strategy = _choose_delta(task)
    try:
        details = load_delta(context.client.url, context.client, task.name, strategy)
    except ServerError as error:
        show_error(error)
        return
    found = _find_predictions(context, task, strategy, details)
    if found is not None:
        try:
            gold, logits = list(found.gold), list(found.logits)
            judged = Judged.of(task.kind, task.labels, found.rows, gold, logits)
        except ServerError as error:
            show_error(error)
        else:
            _show_judged(judged, found, details)
    rows = context.catalogue.benchmark.of(task.name)
    colors = strategy_colors([row.strategy for row in context.catalogue.benchmark.rows])
    show_details(context.client, rows, task, colors)


def _choose_delta(task: TaskInfo) -> str:
    key = "trust/strategy"
    if st.session_state.get(key) not in task.strategies:
        wanted = opened("strategy")
        st.session_state[key] = wanted if wanted in task.strategies else task.strategies[0]

    def follow() -> None:
        st.session_state[f"details/{task.name}"] = st.session_state[key]

    strategy = st.selectbox(
        "Delta to judge", task.strategies, key=key, on_change=follow, persist_state="session"
    )
    st.session_state.setdefault(f"details/{task.name}", strategy)
    share("strategy", strategy)
    return strategy


def _find_predictions(
    context: ViewContext, task: TaskInfo, strategy: str, details: DeltaDetails
) -> Predictions | None:
    """Return the uploaded predictions, else the server's; explain how to get some if none are."""
    with st.expander("Use a predictions.parquet from your disk"):
        st.caption(
            "A run of training.fit leaves it beside its delta. It holds row numbers, labels and "
            "logits, and no text. The page reads it here and sends it nowhere."
        )
        upload = st.file_uploader(
            "File of predictions", type="parquet", key=f"trust/upload/{task.name}/{strategy}"
        )
    wanted = st.session_state.get(f"trust/split/{task.name}/{strategy}")
    try:
        if upload is not None:
            found = read_upload(upload.getvalue(), wanted)
        else:
            found = _load(context.client.url, context, task.name, strategy, details.version, wanted)
    except ServerError as error:
        _explain(error, details)
        return None
    if len(found.splits) > 1:
        st.segmented_control(
            "Rows",
            list(found.splits),
            default=found.split,
            required=True,
            format_func=lambda name: f"{name} ({found.splits[name]:,})",
            key=f"trust/split/{task.name}/{strategy}",
            help="The delta was chosen and calibrated on the selection rows. The others chose "
            "nothing, so they are the ones to trust.",
        )
    _warn_about_version(found, details)
    return found


@st.cache_data(ttl=300, show_spinner="Reading the predictions ...", max_entries=8)
def _load(
    url: str, _context: ViewContext, task: str, strategy: str, version: str, split: str | None
) -> Predictions:  # the URL is part of the cache key
    return predictions_of(_context.client, task, strategy, version, split)


def _explain(error: ServerError, details: DeltaDetails) -> None:
    command = str(details.manifest.get("training", {}).get("command") or "")
    if is_missing(error):
        st.info(
            "This server runs an earlier release, which can't send predictions. Upload the "
            "file of a run above, or start a newer server."
        )
    elif has_no_predictions(error):
        st.info(
            "**There are no predictions of this version to judge.** A run leaves them beside its "
            "delta. Repeat the run to make them, then copy both files to the server, or upload "
            "the file above. Below is what the manifest knows."
        )
        st.caption("The command that made this delta:")
        st.code(command or "The manifest names no command.", language="bash", wrap_lines=True)
    else:
        show_error(error)


def _warn_about_version(found: Predictions, details: DeltaDetails) -> None:
    if found.version is None:
        st.warning(
            "This file is from an earlier release and doesn't name its delta, so nothing "
            "proves that these are the predictions of the delta above. Compare the scores below "
            "with those of the manifest."
        )
    elif found.version != details.version:
        st.warning(
            f"These are predictions of version `{found.version[:64].replace('`', '')}`, and the "
            f"server answers with version `{details.version}`."
        )
    known = details.manifest.get("metrics", {}).get(found.split, {}).get("rows", 0)
    if found.splits[found.split] < known:
        st.caption(
            f"A sample of the rows: {found.splits[found.split]:,} of the {known:,} that the "
            "manifest's scores cover."
        )
    if found.next is not None:
        st.warning(
            f"Only the first {len(found.rows):,} of {found.splits[found.split]:,} rows are used."
        )


def _show_judged(judged: Judged, found: Predictions, details: DeltaDetails) -> None:
    measured = f"{len(judged.rows):,} rows of {literal(found.split)}"
    if judged.kind == "regression":
        _show_values(judged, measured)
        return
    before = judged.before(details.manifest.get("calibration"))
    known = reliability(judged, before)
    if judged.kind == "single_label":
        curve = risk_coverage(judged)
        columns = st.columns(4)
        columns[0].metric("Rows", f"{len(judged.rows):,}", border=True)
        columns[1].metric("Accuracy", f"{accuracy(judged):.3f}", border=True)
        columns[2].metric("Calibration error", f"{known.error:.3f}", border=True)
        columns[3].metric("Area under the risk curve", f"{curve.area:.3f}", border=True)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Are its probabilities right?", anchor=False)
        is_changed = known.error != known.error_before
        earlier = reliability(before, before) if is_changed else None
        said = reliability_sentences(known, judged.kind, measured)
        st.altair_chart(calibration_chart(known, earlier), width="stretch", alt=said)
        st.caption(said)
    with right:
        if judged.kind == "single_label":
            _show_risk(judged)
        else:
            _show_thresholds(judged)
    if judged.kind == "single_label":
        _show_confusion(judged)
        _show_thresholds(judged)
    st.caption(f"All numbers of this view: {measured}, from the predictions beside the delta.")


def _show_risk(judged: Judged) -> None:
    st.subheader("If it answers only when sure", anchor=False)
    curve = risk_coverage(judged)
    least = curve.at_risk(_BOUNDED_RISK)
    said = f"If it answers every row, {percent(curve.risk[-1])} of its answers are wrong. "
    if curve.risk[-1] > _BOUNDED_RISK:
        said += (
            f"To be wrong at most {percent(_BOUNDED_RISK)} of the time, it can answer "
            f"{percent(least[0])} of the rows: those with a probability of {least[1]:.3f} or more."
            if least
            else f"No limit brings that to {percent(_BOUNDED_RISK)}."
        )
    st.altair_chart(risk_chart(curve), width="stretch", alt=said)
    st.caption(said)


def _show_confusion(judged: Judged) -> None:
    st.subheader("What does it confuse?", anchor=False)
    counts = confusion(judged)
    names = [label_words(label) for label in judged.labels]
    if len(set(names)) < len(names):  # such as "new_york" and "new york"
        names = list(judged.labels)
    gold_key, decided_key = "trust/gold", "trust/decided"
    worst = largest_confusion(counts)
    for key, code in zip((gold_key, decided_key), worst, strict=True):
        if st.session_state.get(key) not in judged.labels:
            st.session_state[key] = judged.labels[code]

    def choose() -> None:
        cells = st.session_state["trust/cells"].selection.cells
        if cells:
            row, column = cells[0]
            st.session_state[gold_key] = judged.labels[row]
            if column in names:
                st.session_state[decided_key] = judged.labels[names.index(column)]

    left, right = st.columns([3, 2], gap="large")
    if counts.size <= _MAX_CELLS:
        table = pd.DataFrame(counts, index=pd.Index(names, name="Gold label"), columns=names)
        left.dataframe(
            table.style.apply(_tint, axis=1),
            key="trust/cells",
            on_select=choose,
            selection_mode="single-cell",
            width="stretch",
            column_config={name: st.column_config.Column(width="small") for name in names},
            alt="Rows by gold label, down, and decided label, across",
        )
        left.caption("Gold labels down, decisions across. Click a cell to see its rows.")
    if len(names) > _MANY_LABELS:
        with left:
            _show_mistakes(judged)
    with right:
        gold = st.selectbox("Gold label", judged.labels, key=gold_key, format_func=label_words)
        decided = st.selectbox("Decided", judged.labels, key=decided_key, format_func=label_words)
        cell = rows_of_cell(judged, judged.labels.index(gold), judged.labels.index(decided))
        _show_rows(cell, gold, decided)


def _tint(row: pd.Series) -> list[str]:
    """Tint the cells by their share of the row, so that mistakes show beside many right answers."""
    total = max(1, int(row.sum()))
    return [f"background-color: rgba(76, 110, 245, {0.75 * count / total:.2f})" for count in row]


def _show_rows(cell: list[tuple[int, float]], gold: str, decided: str) -> None:
    several = f"{len(cell):,} rows" if len(cell) != 1 else "1 row"
    verb = "are" if len(cell) != 1 else "is"
    st.markdown(
        f"{several} labelled **{literal(_words(gold))}** {verb} decided as "
        f"**{literal(_words(decided))}**."
    )
    if cell:
        table = pd.DataFrame(cell[:_MAX_SHOWN_ROWS], columns=["Row", "Probability"])
        st.dataframe(
            table.style.format({"Probability": "{:.3f}"}),
            hide_index=True,
            height=min(260, 38 + 35 * len(table)),
            width="stretch",
            alt="Numbers of the rows in the file of the data, the surest first",
        )
        more = len(cell) - len(table)
        rest = f", and {more:,} more" if more else ""
        st.caption(f"Numbers of rows in the file of the data, the surest first{rest}.")


def _show_mistakes(judged: Judged) -> None:
    found = mistakes(judged, _MAX_SHOWN_ROWS)
    if not found:
        return
    table = pd.DataFrame(found, columns=["Rows", "Gold label", "Decided"])
    table = table.apply(lambda column: column.map(_words) if column.name != "Rows" else column)
    st.dataframe(table, hide_index=True, width="stretch", alt="The most frequent mistakes")
    st.caption("The most frequent mistakes, one a line.")


def _words(label: str) -> str:
    """Return a label's words, short enough for a sentence."""
    words = label_words(label)
    return words if len(words) <= _MAX_WORDS else f"{words[: _MAX_WORDS - 1]}…"


def _show_thresholds(judged: Judged) -> None:
    st.subheader("Where should it decide?", anchor=False)
    threshold = st.slider(
        "Minimum probability to decide",
        min_value=0.0,
        max_value=1.0,
        value=0.5 if judged.kind == "multi_label" else 0.0,
        step=0.01,
        key=f"trust/threshold/{judged.kind}",
        help="A higher limit makes decisions rarer and more often right.",
    )
    scores = label_scores(judged, threshold)
    decided = sum(each.decided for each in scores)
    if len(scores) > _MANY_LABELS:
        scores.sort(key=lambda each: each.f1)
    if judged.kind == "single_label":
        right = sum(each.right for each in scores)
        share_right = f", and {percent(right / decided)} of them are right" if decided else ""
        answered = percent(decided / len(judged.rows))
        st.caption(f"At {threshold:.2f}, {answered} of the rows get an answer{share_right}.")
    else:
        each_row = decided / len(judged.rows)
        st.caption(f"At {threshold:.2f}, a row gets {each_row:.2f} labels on average.")
    table = pd.DataFrame(
        {
            "Label": [label_words(each.label) for each in scores],
            "Precision": [each.precision for each in scores],
            "Recall": [each.recall for each in scores],
            "Decided": [each.decided for each in scores],
            "Labelled": [each.gold for each in scores],
        }
    )
    st.dataframe(
        table.style.format({"Precision": "{:.3f}", "Recall": "{:.3f}"}, na_rep="none decided"),
        hide_index=True,
        width="stretch",
        alt=f"Precision, recall and volume of each label at {threshold:.2f}",
    )


def _show_values(judged: Judged, measured: str) -> None:
    errors = value_errors(judged)
    columns = st.columns(4)
    columns[0].metric("Rows", f"{len(judged.rows):,}", border=True)
    columns[1].metric("Mean absolute error", f"{errors.mean_absolute:.3f}", border=True)
    columns[2].metric("Root mean square", f"{errors.root_mean_square:.3f}", border=True)
    shown = "n/a" if errors.pearson is None else f"{errors.pearson:.3f}"
    columns[3].metric("Pearson correlation", shown, border=True)
    left, right = st.columns([3, 2], gap="large")
    step = max(1, len(judged.rows) // _MAX_DOTS)
    dots = (judged.gold[::step], judged.logits[::step, 0], judged.rows[::step])
    gold, decided, rows = (part.tolist() for part in dots)
    said = f"Decided against gold values; {len(rows):,} of {measured}."
    left.altair_chart(value_chart(gold, decided, rows), width="stretch", alt=said)
    left.caption(said)
    right.markdown("**The largest errors**")
    right.dataframe(
        pd.DataFrame(errors.worst, columns=["Row", "Gold", "Decided"]).style.format(
            {"Gold": "{:.2f}", "Decided": "{:.2f}"}
        ),
        hide_index=True,
        width="stretch",
        alt="Numbers of the rows with the largest errors",
    )
