"""`/hf/{task}` answers as huggingface_hub reads it, for every kind of task."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

PAIR = {"text": "a man eats", "text_pair": "he dines"}


def scores(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def close(labels: Any) -> Any:
    """The same labels; a row's scores differ a little with its batch neighbours."""
    return [each | {"score": pytest.approx(each["score"], abs=1e-5)} for each in labels]


def test_an_answer_is_a_list_of_lists_best_first(client: TestClient) -> None:
    (labels,) = scores(client, "/hf/toy2", inputs="a film", parameters={})
    assert {each["label"] for each in labels} == {"good", "bad"}
    assert labels[0]["score"] >= labels[1]["score"]
    own = client.post("/predict/toy2", json={"inputs": "a film"}).json()["predictions"][0]
    assert {each["label"]: each["score"] for each in labels} == pytest.approx(own["scores"])
    two = scores(client, "/hf/toy2/", inputs=["a film", "a play"], parameters=None)
    assert [len(row) for row in two] == [2, 2]
    assert two[0] == close(labels)


def test_every_kind_has_labels(client: TestClient) -> None:
    (many,) = scores(client, "/hf/toy68", inputs="a film", parameters={"top_k": 5})
    assert len(many) == 5
    (several,) = scores(client, "/hf/toymulti", inputs="a film")
    assert {each["label"] for each in several} == set("abcd")
    (value,) = scores(client, "/hf/toyreg", inputs=PAIR)
    assert [each["label"] for each in value] == ["LABEL_0"]
    named = {"premise": PAIR["text"], "hypothesis": PAIR["text_pair"]}
    (expected,) = scores(client, "/hf/toy3", inputs=[PAIR])
    assert scores(client, "/hf/toy3", inputs=[named]) == [close(expected)]


def test_functions_and_strategies_are_chosen(client: TestClient) -> None:
    (raw,) = scores(
        client, "/hf/toy2", inputs="a film", parameters={"function_to_apply": "none", "top_k": None}
    )
    (soft,) = scores(client, "/hf/toy2", inputs="a film")
    assert [each["label"] for each in raw] == [each["label"] for each in soft]
    assert raw != soft
    for strategy in ("random:0.05", "top:1"):
        (found,) = scores(client, f"/hf/toy2/{strategy}", inputs="a film")
        body = {"inputs": "a film", "strategy": strategy}
        own = client.post("/predict/toy2", json=body).json()["predictions"][0]
        assert found[0]["score"] == pytest.approx(own["score"])


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/hf/toy2", {"inputs": "a", "parameters": {"candidate_labels": ["a"]}}, 422, "candidate"),
        ("/hf/toy2", {"inputs": {"question": "a", "context": "b"}}, 422, "text classification"),
        ("/hf/toy2", {"inputs": "a", "normalize": True}, 422, "'normalize' is not a field"),
        ("/hf/toy2", {"inputs": []}, 422, "is an empty list"),
        (
            "/hf/toy2",
            {"inputs": "a", "parameters": {"top_k": 0}},
            422,
            "greater than or equal to 1",
        ),
        (
            "/hf/toyreg",
            {"inputs": PAIR, "parameters": {"function_to_apply": "softmax"}},
            422,
            "regr",
        ),
        ("/hf/toy3", {"inputs": "only one text"}, 422, "takes two texts"),
        ("/hf/nothing", {"inputs": "a"}, 404, "unknown task 'nothing'"),
        ("/hf/toy2/nothing", {"inputs": "a"}, 404, "unknown strategy 'nothing'"),
        ("/hf/toy2", {"inputs": ["a"] * 5000}, 413, "too many rows"),
    ],
)
def test_errors_are_texts(
    client: TestClient, path: str, body: Any, status: int, reason: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_files_of_other_tasks_are_refused(client: TestClient) -> None:
    answer = client.post("/hf/toy2", content=b"\x89PNG", headers={"content-type": "image/png"})
    assert answer.status_code == 415
    assert "text classification" in answer.json()["error"]


def test_the_hint_of_an_error_follows_its_sentence(client: TestClient) -> None:
    answer = client.post("/hf/toy2", json={"inputs": {"question": "a", "context": "b"}})
    assert "which takes 'sentence'; this address" in answer.json()["error"]
