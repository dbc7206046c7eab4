"""`/invocations` answers as MLflow's scoring server does."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

SPLIT = {"columns": ["text"], "data": [["a film"], ["a play"]]}


def test_predictions_are_those_of_the_task(client: TestClient) -> None:
    body = {"dataframe_split": SPLIT}
    found = client.post("/invocations?task=toy2", json=body).json()["predictions"]
    own = client.post("/predict/toy2", json={"inputs": ["a film", "a play"]}).json()["predictions"]
    assert found == [{"label": each["label"], "score": each["score"]} for each in own]
    several = client.post("/invocations?task=toymulti", json={"inputs": "a film"}).json()
    own = client.post("/predict/toymulti", json={"inputs": "a film"}).json()["predictions"][0]
    assert several["predictions"] == [{"labels": own["labels"], "scores": own["scores"]}]
    rows = {"instances": [["a", "b"]]}
    (value,) = client.post("/invocations?task=toyreg&strategy=head", json=rows).json()[
        "predictions"
    ]
    own = {"inputs": {"text": "a", "text_pair": "b"}, "strategy": "head"}
    answer = client.post("/predict/toyreg", json=own).json()["predictions"][0]
    assert value == pytest.approx(answer["value"])


@pytest.mark.parametrize(
    ("query", "body", "status", "code", "reason"),
    [
        ("", {"inputs": "a"}, 422, "INVALID_PARAMETER_VALUE", "names no task, and there are 5"),
        ("?task=toy2", {"data": "a"}, 422, "INVALID_PARAMETER_VALUE", "'data' is not a field"),
        ("?task=toy2&x=1", {"inputs": "a"}, 422, "INVALID_PARAMETER_VALUE", "'x' is not a param"),
        ("?task=toy2", {}, 422, "INVALID_PARAMETER_VALUE", "has none of them"),
        (
            "?task=toy2",
            {"inputs": "a", "params": {"top_k": 1}},
            422,
            "INVALID_PARAMETER_VALUE",
            "Allowed: none",
        ),
        ("?task=toy2", {"inputs": [1]}, 422, "INVALID_PARAMETER_VALUE", "not a number"),
        ("?task=a&task=b", {"inputs": "a"}, 422, "INVALID_PARAMETER_VALUE", "is twice in"),
        (f"?task={'a' * 300}", {"inputs": "a"}, 422, "INVALID_PARAMETER_VALUE", "at most 256"),
        ("?task=x", {"inputs": "a"}, 404, "RESOURCE_DOES_NOT_EXIST", "unknown task 'x'"),
        ("?task=toy2", {"inputs": ["a"] * 5000}, 413, "BAD_REQUEST", "too many rows"),
    ],
)
def test_errors_have_its_form(
    client: TestClient, query: str, body: Any, status: int, code: str, reason: str
) -> None:
    answer = client.post(f"/invocations{query}", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error_code", "message"}
    assert answer.json()["error_code"] == code
    assert reason in answer.json()["message"]


def test_csv_is_refused_with_the_form_to_send(client: TestClient) -> None:
    answer = client.post(
        "/invocations?task=toy2", content="text\na", headers={"content-type": "text/csv"}
    )
    assert (answer.status_code, answer.json()["error_code"]) == (415, "BAD_REQUEST")


@pytest.mark.parametrize("field", ["dataframe_records", "dataframe_split"])
def test_many_wrong_rows_are_one_error(client: TestClient, field: str) -> None:
    rows = {
        "dataframe_records": [1] * 1000,
        "dataframe_split": {"columns": [0], "data": [1] * 1000},
    }
    answer = client.post("/invocations?task=toy2", json={field: rows[field]})
    assert answer.status_code == 422
    assert "more)" not in answer.json()["message"]
