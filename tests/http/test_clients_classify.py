"""`/classify` answers vLLM's clients and the Semantic Router, told apart by the body's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.http.test_keys import bearer, key

KEYS = (
    key("one", "predict", "toy68")
    + key("several", "predict", "toymulti")
    + key("two", "predict", "toy2 toy3")
    + key("none", "predict", "no-such-task")
)


@pytest.fixture(scope="module")
def keyed(make_app: Callable[..., Any]) -> Any:
    """A client of a server whose keys name tasks."""
    with TestClient(make_app(keys=KEYS), raise_server_exceptions=False) as started:
        yield started


def test_vllm_gets_one_class_for_each_input(client: TestClient) -> None:
    answer = client.post("/classify", json={"model": "toy2", "input": ["a film", "a play"]}).json()
    own = client.post("/predict/toy2", json={"inputs": ["a film", "a play"]}).json()["predictions"]
    assert answer["model"] == "toy2"
    assert [each["index"] for each in answer["data"]] == [0, 1]
    for found, expected in zip(answer["data"], own, strict=True):
        assert found["label"] == expected["label"]
        assert found["probs"] == pytest.approx(list(expected["scores"].values()))
        assert found["num_classes"] == 2
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    one = client.post("/classify/", json={"model": "toy2:head", "input": "a film"}).json()
    assert len(one["data"]) == 1


def test_other_kinds_have_classes_too(client: TestClient) -> None:
    row = {"first": "a", "second": "b"}
    value = client.post("/classify", json={"model": "toyreg", "input": row}).json()["data"][0]
    assert (value["label"], value["num_classes"]) == (None, 1)
    several = client.post("/classify", json={"model": "toymulti", "input": "a"}).json()["data"][0]
    assert several["label"] in "abcd"
    body = {"model": "toy2", "input": "a film", "use_activation": False}
    raw = client.post("/classify", json=body).json()["data"][0]["probs"]
    assert abs(sum(raw) - 1) > 1e-3


def test_the_router_gets_the_distribution_of_its_keys_task(keyed: TestClient) -> None:
    answer = keyed.post("/classify", json={"inputs": "a film"}, headers=bearer("one"))
    flat = answer.json()
    assert len(flat) == 68
    assert sum(each["score"] for each in flat) == pytest.approx(1, abs=0.02)
    assert flat == sorted(flat, key=lambda each: -each["score"])
    lists = keyed.post("/classify", json={"inputs": ["a film"]}, headers=bearer("one")).json()
    assert lists == [flat]
    unnamed = keyed.post("/classify", json={"input": "a film"}, headers=bearer("one")).json()
    assert unnamed["model"] == "toy68"


@pytest.mark.parametrize(
    ("name", "body", "status", "reason"),
    [
        ("several", {"inputs": "a"}, 422, "a multi_label task, whose scores are no distribution"),
        ("two", {"inputs": "a"}, 422, "names no task, and there are 2"),
        ("two", {"model": "toy68", "input": "a"}, 403, "may not use the task 'toy68'"),
        ("none", {"inputs": "a"}, 403, "may use none of the served tasks"),
        ("one", {"inputs": "a", "model": "toy68"}, 422, "'model' is not a field of this request"),
        ("one", {"inptu": "a"}, 422, "Did you mean 'input'"),
        ("one", {"input": "a", "use_activation": 1}, 422, "use_activation"),
        ("one", [], 422, "must be"),
        ("one", {"model": "toy68", "input": [1, 2]}, 422, "not a number"),
    ],
)
def test_errors_have_openais_form(
    keyed: TestClient, name: str, body: Any, status: int, reason: str
) -> None:
    answer = keyed.post("/classify", json=body, headers=bearer(name))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reason in error["message"]
    assert error["code"] == status


def test_other_tasks_stay_hidden(keyed: TestClient) -> None:
    answer = keyed.post("/classify", json={"inputs": "a"}, headers=bearer("two"))
    assert "toy2, toy3" in answer.text
    assert "toy68" not in answer.text
