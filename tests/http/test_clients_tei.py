"""`/tei/{task}` answers as text-embeddings-inference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.http.test_clients_hugging_face import close
from tests.http.test_errors import break_engine, fail


def predict(client: TestClient, task: str, inputs: Any, **more: Any) -> Any:
    answer = client.post(f"/tei/{task}/predict", json={"inputs": inputs} | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_list_of_two_texts_is_a_pair(client: TestClient) -> None:
    pair = predict(client, "toy3", ["a man eats", "he dines"])
    assert {each["label"] for each in pair} == {"yes", "maybe", "no"}
    batch = predict(client, "toy3", [["a man eats", "he dines"], ["a", "b"]])
    assert [len(row) for row in batch] == [3, 3]
    assert batch[0] == close(pair)
    named = {"premise": "a man eats", "hypothesis": "he dines"}
    assert predict(client, "toy3", named) == close(pair)
    assert predict(client, "toy3", [named]) == [close(pair)]


def test_lists_of_one_text_are_a_batch(client: TestClient) -> None:
    one = predict(client, "toy2", "a film")
    assert predict(client, "toy2", ["a film"]) == close(one)
    assert predict(client, "toy2", [["a film"], ["a play"]])[0] == close(one)
    assert one[0]["score"] >= one[1]["score"]


def test_raw_scores_are_those_of_the_head(client: TestClient) -> None:
    raw = predict(client, "toymulti", "a film", raw_scores=True, truncate=True)
    usual = predict(client, "toymulti", "a film", raw_scores=None)
    assert [each["label"] for each in raw] == [each["label"] for each in usual]
    assert raw != usual
    assert all(0 <= each["score"] <= 1 for each in usual)


@pytest.mark.parametrize(
    ("task", "body", "status", "kind"),
    [
        ("toy2", {"inputs": "word " * 100, "truncate": False}, 413, "validation"),
        ("toy2", {"inputs": [["a"]] * 5000}, 413, "validation"),
        ("toy2", {"inputs": ["a", "b"]}, 422, "tokenizer"),
        ("toy2", {"inputs": ["a", "b", "c"]}, 422, "tokenizer"),
        ("toy3", {"inputs": [["a"]]}, 422, "tokenizer"),
        ("toy2", {"inputs": []}, 422, "tokenizer"),
        ("toy2", {"inputs": [[]]}, 422, "tokenizer"),
        ("toy2", {"inputs": [["a"], 1]}, 422, "tokenizer"),
        ("toy2", {"inputs": "a", "truncation_direction": "left"}, 422, "tokenizer"),
        ("toy2", {"inputs": "a", "normalise": True}, 422, "tokenizer"),
        ("nothing", {"inputs": "a"}, 404, "validation"),
    ],
)
def test_errors_have_its_shape(
    client: TestClient, task: str, body: Any, status: int, kind: str
) -> None:
    answer = client.post(f"/tei/{task}/predict", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert answer.json()["error_type"] == kind


def test_long_text_is_cut_unless_it_must_not(client: TestClient) -> None:
    assert predict(client, "toy2", "word " * 100)
    assert predict(client, "toy2", "short", truncate=False)


def test_text_that_may_not_be_cut_is_refused_with_a_remedy(client: TestClient) -> None:
    body = {"inputs": [["a"], ["word " * 100]], "truncate": False}
    assert client.post("/tei/toy2/predict", json=body).json()["error"] == (
        "too many tokens in row 1: more than 32 (limit 32). Send a shorter text, or leave out "
        "`truncate`, which cuts the text there"
    )


def test_a_failure_counts_as_one_of_the_server(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alarm on 5xx sees it, though TEI's clients get 424."""
    break_engine(monkeypatch, fail)
    client = start()  # the batcher holds the engine's method, so the app must be a new one
    answer = client.post("/tei/toy2/predict", json={"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (424, "backend")
    counter = 'deltabert_requests_total{method="POST",route="/tei/{task}/predict",status="%s"}'
    text = client.get("/metrics").text
    assert f"{counter % 500} 1.0" in text
    assert counter % 424 not in text


def test_info_and_health(client: TestClient) -> None:
    info = client.get("/tei/toy68/info/").json()
    assert info["model_type"]["classifier"]["id2label"]["67"] == "label 67"
    assert (info["max_input_length"], info["auto_truncate"]) == (16, True)
    assert client.get("/tei/toyreg/info").json()["model_type"]["classifier"]["id2label"] == {
        "0": "LABEL_0"
    }
    health = client.get("/tei/toy2/health")
    assert (health.status_code, health.content) == (200, b"")
    missing = client.get("/tei/nothing/health")
    assert (missing.status_code, missing.json()["error_type"]) == (404, "validation")
