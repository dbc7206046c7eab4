"""Explanations over HTTP: each word left out, for every strategy, as ordinary predictions."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas import Backbone, delta_path, write_delta
from tests.factories import TOY_TASKS, make_delta

CheckError = Callable[..., dict[str, Any]]
TEXT = "a very good film, not bad"
PAIR = {"premise": "the film is good", "hypothesis": "bad"}


def explain(client: TestClient, task: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/explain/{task}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def predict(client: TestClient, task: str, inputs: Any, strategy: str) -> dict[str, Any]:
    response = client.post(f"/predict/{task}", json={"inputs": inputs, "strategy": strategy})
    (prediction,) = response.json()["predictions"]
    found: dict[str, Any] = prediction
    return found


def test_losses_are_differences_of_predictions(client: TestClient) -> None:
    answer = explain(client, "toy2", inputs=TEXT)
    assert [word["text"] for word in answer["words"]] == TEXT.replace(",", "").split()
    for word in answer["words"]:
        assert TEXT[word["start"] : word["end"]] == word["text"]
        assert word["field"] == "sentence"
    listed = {task["task"]: task for task in client.get("/tasks").json()["tasks"]}
    assert [result["strategy"] for result in answer["results"]] == listed["toy2"]["strategies"]
    for result in answer["results"]:
        strategy, label = result["strategy"], answer["label"]
        whole = predict(client, "toy2", TEXT, strategy)
        assert result["score"] == pytest.approx(whole["scores"][label], abs=1e-5)
        assert result["prediction"]["scores"] == pytest.approx(whole["scores"], abs=1e-5)
        for word, lost in zip(answer["words"], result["lost"], strict=True):
            rest = TEXT[: word["start"]] + TEXT[word["end"] :]
            without = predict(client, "toy2", rest, strategy)["scores"][label]
            assert lost == pytest.approx(result["score"] - without, abs=1e-5)
    assert any(abs(lost) > 1e-4 for lost in answer["results"][0]["lost"])
    assert -1 <= answer["agreement"] <= 1


def test_all_words_and_strategies_share_a_batch(
    gate: Any, start: Callable[..., TestClient]
) -> None:
    client = start()
    answer = explain(client, "toy2", inputs=TEXT)
    num_rows = (len(answer["words"]) + 1) * len(answer["results"])
    assert sum(map(len, gate.batches)) == num_rows
    assert len(gate.batches) == 1, "all rows fit one batch"


def test_words_of_both_texts_of_a_pair(client: TestClient) -> None:
    answer = explain(client, "toy3", inputs=PAIR, strategies=["bitfit"])
    assert [(word["field"], word["text"]) for word in answer["words"]] == [
        *(("premise", text) for text in PAIR["premise"].split()),
        ("hypothesis", "bad"),
    ]
    (result,) = answer["results"]
    assert result["lost"][-1] is None, "nothing would be left of the text"
    assert all(isinstance(lost, float) for lost in result["lost"][:-1])
    assert answer["agreement"] is None, "one strategy agrees with none"
    generic = {"text": PAIR["premise"], "text_pair": PAIR["hypothesis"]}
    again = explain(client, "toy3", inputs=generic, strategies=["bitfit"])
    assert again["results"][0]["lost"][:-1] == pytest.approx(result["lost"][:-1], abs=1e-5)


def test_a_chosen_label(client: TestClient) -> None:
    both = [explain(client, "toy2", inputs=TEXT, label=label) for label in ("bad", "good")]
    for one, other in zip(both[0]["results"], both[1]["results"], strict=True):
        assert one["score"] + other["score"] == pytest.approx(1.0, abs=1e-5)
        assert one["lost"] == pytest.approx([-lost for lost in other["lost"]], abs=1e-5)


def test_strategies_are_compared_on_the_label_of_most(client: TestClient) -> None:
    answer = explain(client, "toy2", inputs=TEXT)
    decided = [result["prediction"]["label"] for result in answer["results"]]
    assert decided.count(answer["label"]) >= len(decided) / 2
    for result in answer["results"]:
        assert result["score"] == result["prediction"]["scores"][answer["label"]]


def test_a_value_and_several_labels(client: TestClient) -> None:
    row = {"first": "a good film", "second": "a film"}
    answer = explain(client, "toyreg", inputs=row)
    number = answer["results"][0]
    assert answer["label"] is None
    assert number["score"] == number["prediction"]["value"]
    answer = explain(client, "toymulti", inputs=TEXT, strategies=["bitfit"])
    (several,) = answer["results"]
    scores = several["prediction"]["scores"]
    assert several["score"] == max(scores.values()) == scores[answer["label"]]


def test_a_text_of_one_word_or_of_none(client: TestClient) -> None:
    one = explain(client, "toy2", inputs="good")
    assert {lost for result in one["results"] for lost in result["lost"]} == {None}
    none = explain(client, "toy2", inputs="?!")
    assert none["words"] == []
    assert none["agreement"] is None


def test_wrong_bodies_are_told(client: TestClient, check_error: CheckError) -> None:
    def told(task: str, **body: Any) -> str:
        response = client.post(f"/explain/{task}", json=body)
        return str(check_error(response, 422, "invalid_input")["details"])

    assert "one row, not a list" in told("toy2", inputs=["a film"])
    assert "'godo' is not a label of 'toy2'" in told("toy2", inputs=TEXT, label="godo")
    assert "gives a number" in told("toyreg", inputs={"text": "a", "text_pair": "b"}, label="x")
    assert "hypothesis" in told("toy3", inputs={"premise": "a film"})
    assert "has no text" in told("toy2", inputs=" ")
    assert "not a field" in told("toy2", inputs=TEXT, strategy="bitfit")
    response = client.post("/explain/toy2", json={"inputs": TEXT, "strategies": ["bitfti"]})
    assert "bitfit" in check_error(response, 404, "not_found")["message"]
    check_error(client.post("/explain/toy", json={"inputs": TEXT}), 404, "not_found")


def test_too_many_words_are_told_with_the_limit(
    start: Callable[..., TestClient], check_error: CheckError
) -> None:
    client = start(max_rows_per_request=20)
    (strategies,) = [
        task["strategies"]
        for task in client.get("/tasks").json()["tasks"]
        if task["task"] == "toy2"
    ]
    words = 20 // len(strategies)
    explain(client, "toy2", inputs="good " * (words - 1))
    response = client.post("/explain/toy2", json={"inputs": "good " * words})
    message = check_error(response, 413, "too_large")["message"]
    assert "(words + 1) x strategies" in message
    assert f"{(words + 1) * len(strategies)} (limit 20)" in message


def test_the_deadline_holds(
    gate: Any, start: Callable[..., TestClient], check_error: CheckError
) -> None:
    client = start()
    gate.close()
    response = client.post(
        "/explain/toy2", json={"inputs": TEXT}, headers={"X-Request-Timeout-Ms": "50"}
    )
    check_error(response, 504, "deadline_exceeded")
    gate.is_open.set()


def test_words_that_are_left_out_are_told_in_order(client: TestClient) -> None:
    words = explain(client, "toy2", inputs=TEXT)["words"]
    assert all(one["end"] <= other["start"] for one, other in pairwise(words))


@pytest.mark.parametrize(
    ("text", "says"), [("a " * 90_000, "rows in one"), (("b" * 150 + " ") * 1000, "characters in")]
)
def test_rows_are_refused_before_they_are_made(
    client: TestClient,
    check_error: CheckError,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    says: str,
) -> None:
    """The text is there once for each word: 180 KB with a word in two bytes would be 16 GB."""
    monkeypatch.setattr("app.http.routes.explain.rows_without_words", pytest.fail)
    response = client.post("/explain/toy2", json={"inputs": text, "strategies": ["head"]})
    assert says in check_error(response, 413, "too_large")["message"]


def test_all_strategies_are_asked_however_many_a_task_has(
    start: Callable[..., TestClient],
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than a request of several deltas may name."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # to wait for the disk takes most of the time
    strategies = [f"random:0.{number:04d}" for number in range(1, 258)]
    for strategy in strategies:
        delta = make_delta(tiny_backbone, TOY_TASKS["toy2"], strategy)
        write_delta(delta, delta_path(tmp_path, tiny_backbone.ref.id, "toy2", strategy))
    answer = explain(start(deltas=(tmp_path,)), "toy2", inputs="good")
    assert len({result["strategy"] for result in answer["results"]}) == len(strategies)
