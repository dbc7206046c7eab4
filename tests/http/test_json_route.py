"""The routes with a JSON body check it themselves, with FastAPI's errors and documentation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

JSON = {"Content-Type": "application/json"}
MISSING = {"row": None, "field": None, "problem": "is missing"}
LONG_NAME = {
    "row": None,
    "field": "task",
    "problem": "string should have at most 256 characters",
}
BODIES: list[tuple[str, bytes, int, Any]] = [
    ("toy2", b'{"inputs": "a film"}', 200, None),
    ("toy2", b'{"inputs": ["a film", {"text": "b"}], "top_k": 1}', 200, None),
    ("toy2", b'{"inputs": "a", "strategy": "bitfit", "version": null}', 200, None),
    ("toy2", '{"inputs": "a"}'.encode("utf-16"), 200, None),
    ("toy2", b'{"inputs": "a"', 400, None),
    ("toy2", b"[" * 100_000, 400, None),
    ("toy2", b'{"inputs": "\xff"}', 400, None),
    ("x" * 300, b"{", 400, None),
    ("no-such-task", b'{"inputs": "a"}', 404, None),
    ("toy2", b"", 422, [MISSING]),
    ("x" * 300, b'{"inputs": "a"}', 422, [LONG_NAME]),
    ("x" * 300, b"", 422, [LONG_NAME, MISSING]),
    ("x" * 300, b"{}", 422, [LONG_NAME, MISSING | {"field": "inputs"}]),
]


@pytest.mark.parametrize(("task", "body", "status", "details"), BODIES, ids=range(len(BODIES)))
def test_a_body_is_read_and_checked(
    client: TestClient, task: str, body: bytes, status: int, details: Any
) -> None:
    response = client.post(f"/predict/{task}", content=body, headers=JSON)
    assert response.status_code == status, response.text
    if details is not None:
        assert response.json()["error"]["details"] == details


@pytest.mark.parametrize("body", [b"null", b"[]", b"5", b'"x"'])
def test_a_body_that_is_no_object_is_named(client: TestClient, body: bytes) -> None:
    response = client.post("/predict", content=body, headers=JSON)
    (problem,) = response.json()["error"]["details"]
    assert response.status_code == 422
    assert (problem["field"], "valid dictionary" in problem["problem"]) == (None, True)


def test_all_problems_of_a_request_come_in_one_answer(client: TestClient) -> None:
    headers = JSON | {"X-Request-Timeout-Ms": "soon"}
    body = json.dumps({"inputs": "a", "top_k": 0, "strategy": 5})
    response = client.post(f"/predict/{'x' * 300}", content=body, headers=headers)
    fields = [problem["field"] for problem in response.json()["error"]["details"]]
    assert fields == ["task", "X-Request-Timeout-Ms", "strategy", "top_k"]


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        ("60000", 200),
        ("000000000000060000", 200),
        ("9" * 400, 200),
        *(
            (wrong, 422)
            for wrong in ("0", "00", "+500000", "5_0000", "1.0", "1.5", "-1", "null", "")
        ),
    ],
)
def test_the_timeout_is_a_positive_whole_number(
    client: TestClient, timeout: str, status: int
) -> None:
    headers = JSON | {"X-Request-Timeout-Ms": timeout}
    response = client.post("/predict/toy2", content=b'{"inputs": "a film"}', headers=headers)
    assert response.status_code == status, response.text


def test_fastapi_does_not_solve_the_dependencies_of_a_prediction(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a prediction went through FastAPI")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", fail)
    one = {"inputs": "a film"}
    several = one | {"targets": [{"task": "toy2"}, {"task": "toy68"}]}
    assert client.post("/predict/toy2", json=one).status_code == 200
    assert client.post("/predict", json=several).status_code == 200
    assert client.post("/predict/toy2", json={}).status_code == 422
    assert client.get("/tasks").status_code == 500, "the test cannot fail"


def test_an_app_that_is_not_started_reads_the_body_first(make_app: Any) -> None:
    client = TestClient(make_app(), raise_server_exceptions=False)  # no lifespan
    for body, status in ((b"{", 400), (b"{}", 503), (b'{"inputs": "a"}', 503)):
        assert client.post("/predict/toy2", content=body, headers=JSON).status_code == status
