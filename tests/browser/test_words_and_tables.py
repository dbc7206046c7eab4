"""The views Why and Table without a browser, against a real server."""

from __future__ import annotations

import shlex
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app.engine.engine import Engine
from deltas import Backbone, Delta, delta_path, write_delta
from deltas.manifest import TaskAbout, TaskExample
from frontend.client import Client, open_session
from tests.browser.conftest import PAGE_TASKS
from tests.browser.test_page import MAIN, button, cards, html, open_view, run, texts, words

Open = Callable[..., AppTest]
FILMS = ["the good film", "not a film", "a bad film", "the film is very good"]
TABLE = "text,gold\nthe good film,acceptable\n,unacceptable\nnot a film,unacceptable\n=1 film,x\n"


@pytest.fixture
def open_at(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A function (url, view, **address) -> the view after its first run."""

    def open_one(url: str, view: str, **address: str) -> AppTest:
        monkeypatch.setenv("FRONTEND_API_URL", url)
        page = AppTest.from_file(str(MAIN), default_timeout=60)
        page.query_params.update(address)
        return open_view(run(page), view)

    return open_one


def press(page: AppTest, label: str) -> AppTest:
    button(page, label).click()
    return run(page)


def test_words_of_every_strategy_are_coloured(
    url: str, open_at: Open, strategies: dict[str, tuple[str, ...]]
) -> None:
    page = open_at(url, "why", task="cola", text="the very good film, not bad")
    shown = html(page)
    assert shown.count('<article class="db-why">') == len(strategies["cola"])
    (numbers,) = [frame.value for frame in page.dataframe]
    assert list(numbers["Word"]) == ["the", "very", "good", "film", "not", "bad"]
    found = Client(open_session(url), url).explain("cola", "the very good film, not bad")
    for result in found.results:
        assert list(numbers[result.strategy]) == pytest.approx(list(result.lost), abs=1e-4)
    assert f"{found.agreement:.2f}" in words(page).replace("\\", "")
    assert page.query_params["text"] == "the very good film, not bad"


def test_a_chosen_label_is_explained_and_shared(url: str, open_at: Open) -> None:
    page = open_at(url, "why", task="cola", text="the good film", label="unacceptable")
    assert "“unacceptable”" in html(page)
    assert page.query_params["label"] == "unacceptable"
    assert '"label": "unacceptable"' in str(page.code[0].value)
    (chooser,) = [box for box in page.selectbox if box.label.startswith("Explain")]
    chooser.select("acceptable")
    run(page)
    assert "“acceptable”" in html(page)


def test_a_changed_text_has_no_old_colours(url: str, open_at: Open) -> None:
    page = open_at(url, "why", task="cola", text="the good film")
    page.text_area[0].set_value("another text")
    run(page)
    assert "db-why" not in html(page)
    assert "Press Explain" in words(page)
    press(page, "Explain")
    assert "db-why" in html(page)


def test_the_text_is_shared_by_try_and_why(url: str, open_at: Open) -> None:
    page = open_at(url, "why", task="mnli", text="the film is good", text_pair="it is bad")
    assert "<b>premise</b>" in html(page)
    open_view(page, "")
    assert texts(page) == ["the film is good", "it is bad"]
    assert cards(page) == 2


def test_a_value_is_explained_without_labels(url: str, open_at: Open) -> None:
    page = open_at(url, "why", task="stsb", text="a good film", text_pair="a film")
    assert "a higher value" in html(page)
    assert not [box for box in page.selectbox if box.label.startswith("Explain")]


def test_a_table_is_labelled_and_compared(url: str, open_at: Open) -> None:
    page = open_at(url, "table", task="cola", strategies="bitfit head")
    page.text_area[0].set_value(TABLE)
    run(page)
    press(page, "Label 4 rows")
    assert "1 of 4 rows have no label" in page.warning[0].value
    shown = page.dataframe[0].value
    client = Client(open_session(url), url)
    rows = ["the good film", "not a film", "=1 film"]
    expected = [item.labels[0] for item in client.predict_rows("cola", rows, ["bitfit"])[0]]
    assert list(shown["label (bitfit)"][shown["text"] != ""]) == [
        dict(zip(rows, expected, strict=True))[text] for text in shown["text"] if text
    ]
    doubts = [doubt for doubt in shown["doubt"] if doubt == doubt]
    assert doubts == sorted(doubts, reverse=True), "the most doubtful rows come first"
    (gold,) = [box for box in page.selectbox if box.label == "Column with the right labels"]
    assert gold.value == "none", "not all cells of it are labels"
    gold.select("gold")
    run(page)
    right = sum(a == b for a, b in zip(expected, ["acceptable", "unacceptable", "x"], strict=True))
    (metric,) = [item for item in page.metric if item.label == "Accuracy of bitfit"]
    assert metric.value == f"{right / 4 * 100:.0f} %"
    command = shlex.split(str(page.code[0].value))
    assert command[command.index("--text-columns") + 1] == "text"


def labels_of(page: AppTest) -> dict[str, list[str]]:
    """Return the labels of each strategy, in the order of the rows."""
    shown = page.dataframe[0].value.sort_index()
    return {str(name): list(shown[name]) for name in shown if str(name).startswith("label (")}


def label(page: AppTest, texts: list[str]) -> AppTest:
    page.text_area[0].set_value("\n".join(["text", *texts]))
    run(page)
    return press(page, f"Label {len(texts):,} rows")


def test_a_request_of_one_row_may_be_too_large_for_all_strategies(
    server: Any, open_at: Open
) -> None:
    """Rows count once for each strategy, so three strategies exceed a limit of two rows."""
    server.start(max_rows_per_request=2)
    names = ("bitfit", "layernorm", "head")
    page = label(open_at(server.url, "table", task="cola", strategies=" ".join(names)), FILMS)
    assert not page.error
    assert not [each for each in page.warning if "have no label" in each.value]
    client = Client(open_session(server.url), server.url)
    for name in names:
        known = [client.predict_rows("cola", [text], [name])[0][0].labels[0] for text in FILMS]
        assert labels_of(page)[f"label ({name})"] == known


def test_requests_that_take_too_long_are_asked_again_in_smaller_ones(
    server: Any, open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of a request share its deadline; the server takes too long for many of them."""
    predict, ended, sizes = Engine.predict, threading.Event(), list[int]()

    def take_long(engine: Engine, rows: Any, threads: int = 0) -> Any:
        sizes.append(len(rows))
        if len(rows) > len(FILMS):
            ended.wait(1.5)
        return predict(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", take_long)
    server.start(deadline_s=1)
    page = label(open_at(server.url, "table", task="cola", strategies="bitfit layernorm"), FILMS)
    assert not page.error
    assert max(sizes) == 2 * len(FILMS)
    assert all(all(labels) for labels in labels_of(page).values())


def test_a_strategy_that_can_not_answer_stops_no_other_one(
    server: Any, open_at: Open, page_deltas: Path, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    """Its file goes away while the server runs, after the page has read the catalogue."""
    folder = tmp_path / "deltas"
    shutil.copytree(page_deltas, folder)
    server.start(deltas=(folder,), max_slots=1)
    page = open_at(server.url, "table", task="cola", strategies="bitfit layernorm head")
    client = Client(open_session(server.url), server.url)
    client.predict_rows("cola", ["a film"], ["bitfit"])  # which takes the only slot
    delta_path(folder, tiny_backbone.ref.id, "cola", "layernorm").unlink()
    label(page, FILMS * 10)
    (said,) = page.error
    assert "The rest of the rows have no label of layernorm" in said.value
    found = labels_of(page)
    assert not any(found["label (layernorm)"])
    assert all(found["label (bitfit)"] + found["label (head)"])


def test_columns_of_the_table_are_never_replaced(url: str, open_at: Open) -> None:
    page = open_at(url, "table", task="cola")
    page.text_area[0].set_value("text,doubt,correct label,label (bitfit)\na film,mine,x,y\n")
    run(page)
    press(page, "Label 1 rows")
    shown = page.dataframe[0].value
    assert list(shown.iloc[0][["doubt", "correct label", "label (bitfit)"]]) == ["mine", "x", "y"]
    assert {"doubt 2", "correct label 2", "label (bitfit) 2"} < set(shown.columns)
    command = shlex.split(str(page.code[0].value))
    assert command[command.index("--label-column") + 1] == "correct label 2"


@pytest.mark.parametrize(
    ("task", "columns", "kept"),
    [("topics", ["text"], np.ndarray), ("stsb", ["text", "gold"], float)],
)
def test_lists_and_values_are_corrected_as_such(
    url: str, open_at: Open, task: str, columns: list[str], kept: type
) -> None:
    page = open_at(url, "table", task=task)
    page.text_area[0].set_value("text,gold\nthe good film,=1 film\n-5,a film\n")
    run(page)
    press(page, "Label 2 rows")
    shown = page.dataframe[0].value
    assert {type(label) for label in shown["correct label"].tolist()} == {kept}
    assert ("doubt" in shown) == (task == "topics"), "a value has no probability"
    assert ("most doubtful rows" in words(page)) == (task == "topics")
    command = shlex.split(str(page.code[0].value))
    assert command[command.index("--train-file") + 1] == "labelled.jsonl"
    assert command[command.index("--text-columns") + 1] == ",".join(columns)
    assert "2 rows with their labels, exactly as you gave them" in words(page)


@pytest.mark.parametrize(
    ("task", "header"), [("cola", "sentence"), ("topics", "text"), ("stsb", "sentence1,sentence2")]
)
def test_a_table_without_any_answer_can_be_labelled_by_hand(
    url: str, open_at: Open, task: str, header: str
) -> None:
    page, blank = open_at(url, "table", task=task), "," * (header.count(",") + 1)
    page.text_area[0].set_value(f"{header},gold\n{blank}x\n{blank}y\n")
    run(page)
    press(page, "Label 2 rows")
    assert not page.exception
    assert "2 of 2 rows have no label" in page.warning[0].value
    assert "0 rows with their labels" in words(page)


def test_the_next_table_does_not_get_the_corrections_of_the_last(url: str, open_at: Open) -> None:
    page, editors = open_at(url, "table", task="cola"), set()
    for text in ("the good film", "not a film"):
        page.text_area[0].set_value(f"text\n{text}\n")
        run(page)
        press(page, "Label 1 rows")
        editors.add(page.dataframe[0].proto.id)
    assert len(editors) == 2, "Streamlit keeps the corrections of an editor by its id and row"


def test_a_bad_table_is_a_sentence(url: str, open_at: Open) -> None:
    page = open_at(url, "table", task="cola")
    page.text_area[0].set_value("text,label\na,b,c\n")
    run(page)
    assert "Line 2 has 3 cells" in page.error[0].value
    assert not [item for item in page.button if item.label.startswith("Label")]


def test_labels_stay_while_the_server_is_away(server: Any, open_at: Open) -> None:
    server.start()
    page = open_at(server.url, "table", task="cola")
    page.text_area[0].set_value("text\na film\n")
    run(page)
    press(page, "Label 1 rows")
    shown = page.dataframe[0].value
    server.stop()
    run(page)
    assert "does not answer" in page.warning[0].value
    assert page.dataframe[0].value.equals(shown), "what was labelled stays"
    assert button(page, "Label 1 rows").disabled


def test_words_and_examples_of_a_tasks_author(
    server: Any,
    open_at: Open,
    tmp_path: Path,
    tiny_backbone: Backbone,
    make_delta: Callable[..., Delta],
) -> None:
    (spec,) = [task for task in PAGE_TASKS if task.name == "topics"]
    about = TaskAbout(
        description="Topics of *letters*.",
        question="What is the letter about?",
        examples=(TaskExample(texts=("A goal!",), answer="sport"),),
    )
    delta = make_delta(tiny_backbone, spec, "bitfit", about=about)
    write_delta(delta, delta_path(tmp_path, tiny_backbone.ref.id, "topics", "bitfit"))
    server.start(deltas=(tmp_path,))
    page = open_at(server.url, "")
    assert page.header[0].value == "What is the letter about?"
    assert texts(page) == ["A goal!"]
    assert "Topics of \\*letters\\*." in words(page)
    assert "Expected: sport" in words(page)


def test_the_address_has_no_option_of_another_view(url: str, open_at: Open) -> None:
    page = open_at(url, "table")
    page.query_params.update({"strategy": "head", "task": "cola"})
    run(page)
    assert dict(page.query_params) == {"task": "cola"}


def test_the_table_says_that_a_reload_loses_it(url: str, open_at: Open) -> None:
    assert "A reload of the page loses the table" in words(open_at(url, "table"))
