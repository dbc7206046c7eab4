"""The views Trust, Benchmark, Deltas and Server without a browser, against a real server."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import streamlit as st
from streamlit.testing.v1 import AppTest

from deltas import Backbone, TaskSpec, delta_path, read_manifest, write_delta
from deltas.store.predictions import predictions_path
from tests.browser.conftest import JUDGED, PAGE_TASKS, RECORDED
from tests.browser.test_page import MAIN, html, open_view, run, words
from tests.factories import make_delta, write_some_predictions

Open = Callable[..., AppTest]

KEY = "dbk_of-an-admin"
KEYS = (
    'anonymous = {scopes = ["predict"], tasks = ["*"]}\n'
    f'admin = {{sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}", '
    'scopes = ["admin", "predict"], tasks = ["*"]}\n'
)


@pytest.fixture
def open_at(monkeypatch: pytest.MonkeyPatch) -> Open:
    """A function (url, view, **state) -> the view after its first run."""

    def open_one(url: str, view: str, **state: Any) -> AppTest:
        monkeypatch.setenv("FRONTEND_API_URL", url)
        page = AppTest.from_file(str(MAIN), default_timeout=60)
        for name, value in state.items():
            page.session_state[name.replace("__", "/")] = value
        return open_view(run(page), view)

    return open_one


def metrics(page: AppTest) -> dict[str, str]:
    return {str(item.label): str(item.value) for item in page.metric}


def frames(page: AppTest) -> list[Any]:
    return [item.value for item in page.dataframe]


def frame(page: AppTest, column: str) -> Any:
    (found,) = [each for each in frames(page) if column in each.columns]
    return found


def click(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click()
    return run(page)


def test_trust_shows_the_numbers_of_the_predictions(url: str, open_at: Open) -> None:
    task, strategy = RECORDED
    page = open_at(url, "trust", task=task, trust__strategy=strategy)
    assert metrics(page)["Rows"] == "200"
    assert 0.5 < float(metrics(page)["Accuracy"]) < 1
    assert "200 rows of validation" in words(page)
    assert "If it answers every row" in words(page)
    matrix = frame(page, "acceptable")
    assert int(matrix.to_numpy().sum()) == 200
    gold, decided = page.selectbox(key="trust/gold"), page.selectbox(key="trust/decided")
    assert gold.value != decided.value, "the most frequent mistake is chosen"
    rows = frame(page, "Row")
    counted = matrix.loc[gold.value, decided.value]
    assert len(rows) == counted
    decided.set_value(gold.value)
    run(page)
    assert len(frame(page, "Row")) == min(100, matrix.loc[gold.value, gold.value])


def test_the_threshold_trades_recall_for_precision(url: str, open_at: Open) -> None:
    task, strategy = RECORDED
    page = open_at(url, "trust", task=task, trust__strategy=strategy)
    before = frame(page, "Precision")
    assert before["Decided"].sum() == 200
    page.slider(key="trust/threshold/single_label").set_value(0.8)
    run(page)
    after = frame(page, "Precision")
    assert 0 < after["Decided"].sum() < 200
    assert after["Labelled"].tolist() == before["Labelled"].tolist()
    assert (after["Recall"] <= before["Recall"]).all()
    assert "At 0.80" in words(page)


def test_trust_with_many_labels_lists_the_mistakes(
    server: Any, open_at: Open, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    """Two labels read alike, once "_" is shown as a blank."""
    labels = ("new_york", "new york", *(f"label {number} {'x' * 200}" for number in range(18)))
    task = TaskSpec(
        name="own", kind="single_label", labels=labels, text_fields=("text",), max_length=32
    )
    path = delta_path(tmp_path, tiny_backbone.ref.id, "own", "bitfit")
    write_some_predictions(write_delta(make_delta(tiny_backbone, task, "bitfit"), path), path, 200)
    server.start(deltas=(tmp_path,))
    page = open_at(server.url, "trust", task="own", trust__strategy="bitfit")
    assert not page.exception
    found = frame(page, "Gold label")
    assert list(found["Rows"]) == sorted(found["Rows"], reverse=True)
    assert max(map(len, found["Decided"])) == 60
    recalls = frame(page, "Recall")["Recall"].tolist()
    assert len(recalls) == len(labels)
    assert recalls[0] <= recalls[-1], "the worst label first"


@pytest.mark.parametrize(("task", "shown"), [("topics", "Precision"), ("stsb", "Gold")])
def test_trust_knows_other_kinds_of_tasks(url: str, open_at: Open, task: str, shown: str) -> None:
    page = open_at(url, "trust", task=task, trust__strategy="bitfit")
    assert len(frame(page, shown)) > 1
    assert not page.error
    assert not [box for box in page.selectbox if box.label == "Gold label"], "no confusion"


def test_a_delta_without_predictions_names_its_command(url: str, open_at: Open) -> None:
    assert ("cola", "bitfit") not in JUDGED
    page = open_at(url, "trust", task="cola", trust__strategy="bitfit")
    assert "There are no predictions of this version to judge" in words(page)
    assert [str(code.value) for code in page.code] == ["python -m training.fit"]
    assert not page.error


def test_uploaded_predictions_are_judged_by_the_page(
    url: str, open_at: Open, page_deltas: Path, tiny_backbone: Backbone
) -> None:
    path = delta_path(page_deltas, tiny_backbone.ref.id, *RECORDED)
    page = open_at(url, "trust", task="cola", trust__strategy="bitfit")
    (field,) = page.file_uploader
    field.set_value(("x.predictions.parquet", predictions_path(path).read_bytes(), ""))
    run(page)
    assert metrics(page)["Rows"] == "200"
    assert f"of version {read_manifest(path)[1]}" in words(page).replace("`", "")
    (field,) = page.file_uploader
    field.set_value(("x.parquet", b"no parquet", ""))
    run(page)
    assert "not a file of predictions" in words(page)
    assert "Accuracy" not in metrics(page)


def test_the_benchmark_shows_every_source(url: str, open_at: Open) -> None:
    page = open_at(url, "benchmark")
    assert {"Backbone", "Deltas", "All deltas together"} <= set(metrics(page))
    points = frame(page, "Source")
    assert set(points["Source"]) == {"served deltas"}, "a tiny backbone has no study"
    assert 'class="db-legend"' in html(page)
    assert len(page.get("vega_lite_chart")) >= 4
    page.session_state["benchmark/cost"] = "seconds"
    run(page)
    assert "Training time was not measured here" in words(page)


def test_the_table_of_deltas_is_searched(url: str, open_at: Open) -> None:
    page = open_at(url, "benchmark")
    assert len(frame(page, "Learning rate")) == 9
    page.text_input(key="benchmark/search").set_value("STS")
    run(page)
    assert set(frame(page, "Learning rate")["Task"]) == {"STS-B"}
    page.text_input(key="benchmark/search").set_value("no such name")
    run(page)
    assert "No delta has this in its name" in words(page)


def test_the_history_of_a_run_is_drawn_where_there_is_one(url: str, open_at: Open) -> None:
    task, strategy = RECORDED
    state = {"benchmark__history__task": task, f"benchmark__history__{task}": strategy}
    page = open_at(url, "benchmark", **state)
    assert "The loss of the train rows went from" in words(page)
    page.selectbox(key=f"benchmark/history/{task}").set_value("head")
    run(page)
    assert "has no history" in words(page)


def test_deltas_are_listed_searched_and_shown(url: str, open_at: Open) -> None:
    page = open_at(url, "deltas")
    listed = frame(page, "In memory")
    assert len(listed) == 9
    assert set(listed["Answers"]) == {"by default"}
    page.text_input(key="deltas/search").set_value("mnli/head")
    run(page)
    assert frame(page, "In memory")["Strategy"].tolist() == ["head"]
    page.text_input(key="deltas/search").set_value("mnli")
    run(page)
    page.session_state["deltas/chosen"] = ("mnli", "bitfit")
    run(page)
    changed = frame(page, "attention bias")
    assert changed.index.tolist()[:2] == ["embeddings", "0"]
    assert "largest for" in words(page)
    page.session_state["deltas/chosen"] = ("mnli", "head")
    run(page)
    assert "only its head is trained" in words(page)


def test_refused_files_are_shown_with_their_reasons(
    server: Any, open_at: Open, page_deltas: Path, tmp_path: Path
) -> None:
    shutil.copytree(page_deltas, tmp_path / "deltas")
    (tmp_path / "deltas" / "broken.safetensors").write_bytes(b"no delta")
    server.start(deltas=(tmp_path / "deltas",))
    page = open_at(server.url, "deltas", deltas__status="refused")
    refused = frame(page, "Why it is refused")
    assert refused["File"].tolist() == ["broken.safetensors"]
    assert refused["Why it is refused"].tolist()[0]


@pytest.fixture
def managed(server: Any, page_deltas: Path, tmp_path: Path) -> Any:
    """A server with the key of an admin, and a folder that takes deltas."""
    (tmp_path / "managed").mkdir()
    server.start(deltas=(tmp_path / "managed", page_deltas), keys=KEYS)
    return server


@pytest.fixture
def upload(managed: Any, tiny_backbone: Backbone, tmp_path: Path) -> Callable[[int], bytes]:
    """A function (seed) -> the file of another version of cola/head."""
    (cola,) = [task for task in PAGE_TASKS if task.name == "cola"]

    def make(seed: int, task: TaskSpec = cola) -> bytes:
        path = tmp_path / f"{seed}.safetensors"
        write_delta(make_delta(tiny_backbone, task, "head", seed=seed), path)
        return path.read_bytes()

    return make


def versions(server: Any, **query: str) -> list[str]:
    given = {"task": "cola", "strategy": "head"} | query
    key = {"Authorization": f"Bearer {KEY}"}
    listed = requests.get(f"{server.url}/deltas", given, headers=key, timeout=30).json()["deltas"]
    return [each["version"] for each in listed]


def publish(page: AppTest, content: bytes) -> AppTest:
    """Upload a file through the page, up to the second click."""
    page.file_uploader(key="admin/file").set_value(("x.safetensors", content, ""))
    run(page)
    return click(page, "admin/review")


def test_a_delta_is_uploaded_compared_rolled_back_and_removed(
    managed: Any, upload: Callable[[int], bytes], open_at: Open
) -> None:
    state = {"deltas__chosen": ("cola", "head"), "admin__key": KEY}
    page = open_at(managed.url, "deltas", **state)
    (before,) = versions(managed)
    publish(page, upload(1))
    assert f"in place of {before}" in words(page).replace("`", "")
    assert versions(managed) == [before], "nothing happens before the second click"
    click(page, "admin/confirm")
    assert json.loads(str(page.code[-1].value))["previous"] == before
    first = versions(managed)[0]
    publish(page, upload(2))
    click(page, "admin/confirm")
    second, *_ = versions(managed)
    assert second not in (before, first)

    page.session_state[f"deltas/other/cola/head/{second}"] = first
    run(page)
    assert {"strategy.seed", "training.seed"} == set(frame(page, "Field")["Field"])

    page.session_state["admin/action"] = "split"
    run(page)
    page.session_state["admin/version/Second version"] = first
    run(page)
    click(page, "admin/review")
    assert "answers 10 % of the requests" in words(page)
    click(page, "admin/confirm")
    assert json.loads(str(page.code[-1].value))["split"] == {"version": first, "share": 0.1}
    page.session_state["admin/traffic/3"] = "clear"
    run(page)
    click(page, "admin/review")
    click(page, "admin/confirm")

    page.session_state["admin/action"] = "rollback"
    run(page)
    page.session_state["admin/version/Roll back to"] = first
    run(page)
    click(page, "admin/review")
    click(page, "admin/confirm")
    assert versions(managed)[0] == first

    page.session_state["admin/action"] = "remove"
    run(page)
    click(page, "admin/review")
    assert "can't be undone" in words(page)
    click(page, "admin/cancel")
    assert versions(managed)[0] == first, "a cancelled change is not sent"
    click(page, "admin/review")
    click(page, "admin/confirm")
    assert versions(managed) == [before], "the version of the folder that is only read is left"


def test_a_change_without_the_right_key_changes_nothing(
    managed: Any, upload: Callable[[int], bytes], open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTEND_API_KEY", KEY)  # the page's own key is never used for changes
    before = versions(managed)
    for key, problem in (
        ("", "needs an API key"),
        ("wrong", "needs an API key"),
        ("a b", "no spaces"),
    ):
        page = open_at(managed.url, "deltas", deltas__chosen=("cola", "head"), admin__key=key)
        publish(page, upload(3))
        click(page, "admin/confirm")
        assert problem in words(page)
        assert versions(managed) == before


def test_a_bad_file_is_refused_with_the_servers_reason(managed: Any, open_at: Open) -> None:
    page = open_at(managed.url, "deltas", deltas__chosen=("cola", "head"), admin__key=KEY)
    before = versions(managed)
    publish(page, b"no delta at all")
    click(page, "admin/confirm")
    assert page.error
    assert "Nothing was changed" in words(page)
    assert versions(managed) == before


def test_the_key_is_in_no_address_and_no_cache(managed: Any, open_at: Open) -> None:
    page = open_at(managed.url, "deltas", deltas__chosen=("cola", "head"), admin__key=KEY)
    assert (
        page.text_input(key="admin/key").proto.type
        == page.text_input(key="admin/key").proto.PASSWORD
    )
    assert KEY not in str(dict(page.query_params))
    assert KEY not in words(page)
    assert KEY not in html(page)


def test_the_server_view_counts_what_happens(server: Any, open_at: Open) -> None:
    server.start()
    page = open_at(server.url, "server")
    assert "Rates need a second reading" in words(page)
    for _ in range(3):
        answer = requests.post(
            f"{server.url}/predict/cola", json={"inputs": ["a film", "a ball"]}, timeout=60
        )
        assert answer.status_code == 200
    readings = page.session_state["server/readings"][1]
    first = readings[0]
    readings[0] = type(first)(first.at - 5.0, first.samples)  # as if it was read 5 s earlier
    run(page)
    found = metrics(page)
    assert float(found["Rows"].split()[0]) > 0
    assert found["p99"] != "n/a"
    assert frame(page, "Rows/s")["Task"].tolist() == ["CoLA"]
    memory = dict(frame(page, "Now").to_numpy().tolist())
    assert "9 full models instead" in memory
    assert f"{server.url}/metrics" in words(page)


def test_the_views_outlive_their_server(server: Any, open_at: Open) -> None:
    server.start()
    pages = {view: open_at(server.url, view) for view in ("trust", "benchmark", "deltas", "server")}
    server.stop()
    st.cache_data.clear()
    st.cache_resource.clear()
    for view, page in pages.items():
        run(page)
        said = words(page)
        assert "does not answer" in said or "can't be reached" in said, view
    server.start()
    for page in pages.values():
        run(page)
        assert "does not answer" not in words(page)


def test_a_server_of_an_earlier_release_is_told_in_a_sentence(
    url: str, open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = requests.Session.request

    def without_new_routes(session: Any, method: str, address: str, **options: Any) -> Any:
        for route in ("norms", "predictions"):  # an earlier server takes them for strategies
            address = address.replace(f"/{route}", f"/{route}-of-today")
        return send(session, method, address, **options)

    monkeypatch.setattr(requests.Session, "request", without_new_routes)
    page = open_at(url, "trust", task=RECORDED[0], trust__strategy=RECORDED[1])
    assert "an earlier release, which can't send predictions" in words(page)
    page = open_at(url, "deltas", deltas__chosen=("cola", "bitfit"))
    assert "does not measure changes" in words(page)
    assert not page.error


def test_a_key_without_the_right_to_metrics_is_told(
    server: Any, open_at: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KEYS.replace('tasks = ["*"]}\n', 'tasks = ["cola"]}\n', 1)
    server.start(keys=keys)
    page = open_at(server.url, "server")
    assert page.error
    assert "key" in words(page)
    monkeypatch.setenv("FRONTEND_API_KEY", KEY)
    page = open_at(server.url, "server")
    assert not page.error
