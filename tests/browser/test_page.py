"""The page without a browser: Streamlit's own test driver against a real server."""

from __future__ import annotations

import csv
import io
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from frontend.client import Client, Target, open_session
from frontend.glossary import disagreement, examples_of

MAIN = Path(__file__).parents[2] / "frontend" / "main.py"
Open = Callable[..., AppTest]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A function (url) -> the page after its first run."""

    def open_one(url: str) -> AppTest:
        monkeypatch.setenv("FRONTEND_API_URL", url)
        return run(AppTest.from_file(str(MAIN), default_timeout=60))

    return open_one


def run(page: AppTest) -> AppTest:
    """Run the script once more; no traceback may show."""
    page.run()
    assert not page.exception, page.exception
    return page


def html(page: AppTest) -> str:
    """All our own HTML, without the style sheet."""
    return "".join(
        str(item.proto.body) for item in page.get("html") if "<style>" not in item.proto.body
    )


def cards(page: AppTest) -> int:
    return html(page).count('<article class="db-card"')


def words(page: AppTest) -> str:
    """Everything said outside our own HTML."""
    parts = [*page.markdown, *page.caption, *page.error, *page.warning, *page.info, *page.header]
    return "\n".join(str(item.value) for item in parts)


def choose(page: AppTest, task: str) -> AppTest:
    page.session_state["task"] = task
    return run(page)


def texts(page: AppTest) -> list[str]:
    return [str(area.value) for area in page.text_area]


def predict(page: AppTest, *values: str) -> AppTest:
    for area, value in zip(page.text_area, values, strict=True):
        area.set_value(value)
    button(page, "Predict").click()
    return run(page)


def button(page: AppTest, label: str) -> Any:
    (found,) = [item for item in page.button if item.label == label]
    return found


def curl(page: AppTest) -> str:
    (code,) = page.code
    return str(code.value)


def open_view(page: AppTest, path: str) -> AppTest:
    """Open a view by its path, which Streamlit's driver can do for files only."""
    (page._page_hash,) = [
        key for key, info in page._registered_pages.items() if info["url_pathname"] == path
    ]
    page.query_params.clear()  # as a browser does that follows a link of the navigation
    return run(page)


def ask_every_task(page: AppTest) -> AppTest:
    page.session_state["ask"] = "all"
    return run(page)


def test_the_first_view_shows_predictions(url: str, open_page: Open) -> None:
    page = open_page(url)
    assert page.session_state["task"] == "cola", "the task with most strategies shows most"
    assert texts(page) == list(examples_of("cola", 1)[0].texts)
    assert cards(page) == 4
    assert "Connected" in html(page)
    assert "4 strategies in one call" in words(page)
    assert not page.error
    assert not any("does not answer" in warning.value for warning in page.warning)


def test_each_task_shows_its_fields_and_a_card_a_strategy(
    url: str, open_page: Open, strategies: dict[str, tuple[str, ...]]
) -> None:
    page = open_page(url)
    for task, fields in (
        ("mnli", ["premise", "hypothesis"]),
        ("stsb", ["sentence1", "sentence2"]),
        ("cola", ["sentence"]),
    ):
        choose(page, task)
        assert [area.label for area in page.text_area] == fields
        assert cards(page) == len(strategies[task])
        for strategy in strategies[task]:
            assert f"</i>{strategy}</h3>" in html(page)
    choose(page, "stsb")
    assert html(page).count("5 same meaning") == 2, "values lie on their scale"


def test_a_task_that_the_page_has_never_heard_of(url: str, open_page: Open) -> None:
    page = choose(open_page(url), "topics")
    assert not [box for box in page.selectbox if box.label == "Example"]
    assert cards(page) == 0, "no text, nothing to ask"
    predict(page, "the film and the ball")
    assert cards(page) == 1
    assert html(page).count("left:50%") == 3, "independent bars"
    assert "&lt;b&gt;art&lt;/b&gt;" in html(page), "labels are text, not markup"


def test_predict_sends_the_typed_text(url: str, open_page: Open) -> None:
    page = open_page(url)
    before = html(page)
    predict(page, "the very bad film, $HOME 'quoted' 🙂")
    assert html(page) != before
    (example,) = [box for box in page.selectbox if box.label == "Example"]
    assert example.value is None, "it is no example any more"
    assert "Expected" not in words(page)
    sent = shlex.split(curl(page))[-1]
    assert "the very bad film, $HOME 'quoted' 🙂" in sent
    assert [f'"{name}"' in sent for name in ("bitfit", "layernorm", "random:0.05", "head")]


def test_an_example_fills_the_fields_and_is_answered_at_once(url: str, open_page: Open) -> None:
    page = choose(open_page(url), "mnli")
    (example,) = [box for box in page.selectbox if box.label == "Example"]
    wanted = examples_of("mnli", 2)[3]
    example.select_index(3)
    run(page)
    assert texts(page) == list(wanted.texts)
    assert wanted.texts[1] in curl(page)
    assert f"Expected: {wanted.answer}" in words(page)
    predict(page, *wanted.texts)
    assert [box.value for box in page.selectbox if box.label == "Example"] == [3]


def test_typed_text_survives_a_change_of_view_and_task(url: str, open_page: Open) -> None:
    page = open_page(url)
    page.text_area[0].set_value("half a sentence")
    open_view(page, "benchmark")
    open_view(page, "")
    assert texts(page) == ["half a sentence"]
    choose(page, "mnli")
    choose(page, "cola")
    assert texts(page) == ["half a sentence"]
    assert cards(page) == 0, "the answer to another text would mislead"
    assert "The text has changed" in words(page), "it was not sent"


def test_disagreement_has_a_badge(url: str, open_page: Open) -> None:
    page = open_page(url)
    client = Client(open_session(url), url)
    targets = [Target("cola", name) for name in ("bitfit", "layernorm", "random:0.05", "head")]
    verdicts = {}
    for text in ("good", "bad", "the film", "not very good", "a dog", "zebra", "why?", "go go go"):
        found = client.predict({"sentence": text}, targets).predictions
        verdicts[text] = disagreement(found, None)
    assert len({bool(verdict) for verdict in verdicts.values()}) == 2, verdicts
    for text, verdict in verdicts.items():
        predict(page, text)
        assert ("Strategies disagree" in words(page)) == bool(verdict)
        assert verdict in words(page)


def test_a_truncated_text_is_pointed_out(url: str, open_page: Open) -> None:
    page = predict(open_page(url), "good " * 50)
    assert ["32 tokens" in warning.value for warning in page.warning] == [True]
    predict(page, "good")
    assert not page.warning


def test_an_empty_text_asks_for_one(url: str, open_page: Open) -> None:
    page = predict(open_page(url), "  \n ")
    assert "Type a text" in words(page)
    assert cards(page) == 0


def test_reliability_and_history_of_the_chosen_delta(url: str, open_page: Open) -> None:
    page = open_view(choose(open_page(url), "cola"), "trust")

    def choose_delta(strategy: str) -> None:
        (box,) = [box for box in page.selectbox if box.label == "Delta"]
        box.select(strategy)
        run(page)

    facts = [item for item in page.expander if item.label == "Training facts and manifest"]
    assert [item.proto.expanded for item in facts] == [True]
    choose_delta("layernorm")
    assert len(page.get("vega_lite_chart")) == 3, "reliability, loss and metric"
    said = words(page)
    assert "Of 1,200 answers with a probability of about 90 %, 87 % were right." in said
    assert "Expected calibration error on 2,000 rows of validation: 0.041" in said
    assert "The state after step 200 was kept: Accuracy 0.500 on the selection rows." in said
    choose_delta("head")
    assert not page.get("vega_lite_chart"), "an earlier delta has neither"
    assert '"head"' in str(page.json[0].value)
    assert "Trained on: 100 rows" in words(page)
    assert "calibration" not in words(page)
    assert "History" not in words(page)
    choose(page, "mnli")
    facts = [item for item in page.expander if item.label == "Training facts and manifest"]
    assert [item.proto.expanded for item in facts] == [False], "no delta of this task has them"


def test_the_full_table_and_its_download(url: str, open_page: Open) -> None:
    page = open_view(choose(open_page(url), "mnli"), "benchmark")
    (frame,) = [item.value for item in page.dataframe if "Also measured" in item.value.columns]
    benchmark = Client(open_session(url), url).benchmark()
    assert len(frame) == len(benchmark.rows) == 9
    assert set(frame["Task"]) == {"CoLA", "MNLI", "STS-B", "topics"}
    also = [more for more in frame["Also measured"] if more]
    assert also == ["Expected calibration error 0.041"]
    assert [metric.label for metric in page.metric][:2] == ["Backbone", "Deltas"]
    (button,) = page.get("download_button")
    assert button.proto.url
    assert len(page.get("vega_lite_chart")) == 4, "a panel for each task"


def test_the_address_holds_what_a_view_shows(url: str, open_page: Open) -> None:
    page = predict(choose(open_page(url), "mnli"), "All dogs bark & run.", "Ünder 100 %?")
    address = dict(page.query_params)
    assert address == {"task": "mnli", "text": "All dogs bark & run.", "text_pair": "Ünder 100 %?"}
    shown = html(page)
    fresh = open_page(url)
    again = AppTest.from_file(str(MAIN), default_timeout=60)
    again.query_params.update(address)
    run(again)
    assert texts(again) == ["All dogs bark & run.", "Ünder 100 %?"]
    assert html(again) == shown != html(fresh)
    choose(again, "cola")
    assert "text_pair" not in again.query_params, "the other task has one text"
    predict(again, "x" * 2000)
    assert "text" not in again.query_params, "too long for an address"
    open_view(again, "benchmark")
    assert dict(again.query_params) == {"task": "cola"}, "the text belongs to another view"


def test_an_address_of_nothing_served(url: str, open_page: Open) -> None:
    page = AppTest.from_file(str(MAIN), default_timeout=60)
    page.query_params.update({"task": "gone", "text": "A text.", "ask": "nobody"})
    open_page(url)
    run(page)
    assert page.session_state["task"] == "cola"
    assert texts(page) == list(examples_of("cola", 1)[0].texts)
    assert cards(page) == 4


def test_favourites_come_first_and_stay_in_the_address(url: str, open_page: Open) -> None:
    page = choose(open_page(url), "topics")
    (chooser,) = [box for box in page.selectbox if box.label.startswith("Task")]
    assert chooser.options[0] != "topics", "by how well they are learnt"
    button(page, "Favourite").click()
    run(page)
    (chooser,) = [box for box in page.selectbox if box.label.startswith("Task")]
    assert chooser.options[0] == "★ topics"
    assert page.query_params["favourites"] == "topics"
    open_view(page, "benchmark")
    assert page.query_params["favourites"] == "topics"
    button(page, "Favourite").click()
    run(page)
    assert "favourites" not in page.query_params


def test_all_tasks_answer_one_text(url: str, open_page: Open) -> None:
    page = ask_every_task(open_page(url))
    assert len(page.text_area) == 2
    assert cards(page) == 2
    assert "2 tasks in one call" in words(page)
    for title in ("MNLI · Inference", "STS-B · Similarity"):
        assert title in html(page)
    page.session_state["fan_out/arity"] = 1
    run(page)
    predict(page, "one text for all")
    assert cards(page) == 2
    for title in ("CoLA · Grammar", "topics"):
        assert f"</i>{title}</h3>" in html(page)
    assert "one text for all" in curl(page)


def test_a_server_that_never_answered(server: Any, open_page: Open) -> None:
    page = open_page(server.url)
    (warning,) = page.warning
    assert server.url in warning.value
    assert "does not answer" in warning.value
    assert "Not connected" in html(page)
    assert not page.text_area
    server.start()
    run(page)
    assert cards(page) == 4
    assert not any("does not answer" in warning.value for warning in page.warning)


def test_a_server_that_goes_and_returns(server: Any, open_page: Open) -> None:
    server.start()
    page = predict(open_page(server.url), "kept while it is away")
    answered = html(page)
    server.stop()
    run(page)
    assert "does not answer" in page.warning[0].value
    assert texts(page) == ["kept while it is away"]
    assert cards(page) == 4, "the last answer stays"
    assert button(page, "Predict").disabled
    choose(page, "mnli")
    assert "can't be reached" in page.error[0].value
    server.start()
    run(page)
    assert not any("does not answer" in warning.value for warning in page.warning)
    assert not page.error, "what failed because it was away is asked again"
    assert cards(page) == 2
    choose(page, "cola")
    assert texts(page) == ["kept while it is away"]
    assert html(page) == answered


def test_a_server_that_returns_with_other_deltas(
    server: Any, open_page: Open, tmp_path: Path, page_deltas: Path
) -> None:
    server.start()
    page = choose(open_page(server.url), "stsb")
    (cola,) = page_deltas.rglob("cola/bitfit.safetensors")
    (tmp_path / "bitfit.safetensors").write_bytes(cola.read_bytes())
    server.start(deltas=(tmp_path,))
    st.cache_data.clear()
    st.cache_resource.clear()
    run(page)
    assert cards(page) == 1
    assert [area.label for area in page.text_area] == ["sentence"]
    ask_every_task(page)
    assert cards(page) == 1


def test_a_server_without_deltas(server: Any, open_page: Open, tmp_path: Path) -> None:
    server.start(deltas=(tmp_path,))
    page = open_page(server.url)
    assert "no deltas" in page.info[0].value


def test_an_error_of_the_server_is_a_sentence(server: Any, open_page: Open) -> None:
    server.start(max_text_chars=20)
    page = open_page(server.url)
    (error,) = page.error
    assert "larger than the server accepts" in error.value
    assert "Request id" in error.value
    predict(page, "short")
    assert not page.error
    assert cards(page) == 4


def test_a_missed_deadline_is_a_sentence(server: Any, open_page: Open) -> None:
    server.start(deadline_s=1e-6)
    (error,) = open_page(server.url).error
    assert "time limit" in error.value


def test_a_server_that_can_not_predict_says_why(server: Any, open_page: Open) -> None:
    server.start(lifespan="off")
    page = open_page(server.url)
    assert "not ready" in page.error[0].value
    server.start()
    run(page)
    assert cards(page) == 4


def everything(page: AppTest) -> str:
    """All that the page holds, shown or not."""
    return "\n".join(str(getattr(element, "proto", "")) for element in page)


def test_user_and_password_of_the_address_reach_no_visitor(server: Any, open_page: Open) -> None:
    """Connected, without a server, and where the password makes the address none."""
    server.start()
    address = server.url.replace("//", "//alice:s3cret@")
    page = open_page(address)
    assert cards(page) == 4
    assert server.url in curl(page)
    server.stop()
    run(page)
    assert "does not answer" in page.warning[0].value
    st.cache_data.clear()
    st.cache_resource.clear()
    broken = open_page(address.replace("s3cret", "s3/cret"))
    assert "does not answer" in broken.warning[0].value
    for shown in (page, broken):
        assert "alice" not in everything(shown)
        assert "cret" not in everything(shown)


def test_another_program_at_the_address(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.client._PROBE_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.listen()
        page = open_page(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert "does not answer" in page.warning[0].value


def test_the_csv_is_the_api_as_a_table(url: str) -> None:
    from frontend.panels.tables import benchmark_csv

    benchmark = Client(open_session(url), url).benchmark()
    rows = list(csv.DictReader(io.StringIO(benchmark_csv(benchmark))))
    assert [(row["task"], row["strategy"]) for row in rows] == [
        (row.task, row.strategy) for row in benchmark.rows
    ]
