"""The shortcut past FastAPI: who takes it, and that nobody can tell from the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.requests import Request

from app.http import json_route

BODIES: list[tuple[str, bytes]] = [
    ("toy2", b'{"inputs": "a film"}'),
    ("toy2", b'{"inputs": ["a film", {"text": "b"}], "top_k": 1}'),
    ("toy2", b'{"inputs": "a", "strategy": "bitfit", "version": null}'),
    ("toy2", b'{"inputs": "half a pair: \\ud800"}'),
    ("toy2", b'{"inputs": []}'),
    ("toy2", b'{"inputs": NaN}'),
    ("toy2", b'{"input": "a"}'),
    ("toy2", b'{"inputs": "a", "top_k": "1"}'),
    ("toy2", b'{"inputs": "a", "top_k": 0}'),
    ("toy2", b'{"inputs": "a"'),
    ("toy2", b"[" * 100_000),
    ("toy2", b""),
    ("toy2", b"null"),
    ("toy2", b"[]"),
    ("toy2", b'{"inputs": "\xff"}'),
    ("toy2", '{"inputs": "a"}'.encode("utf-16")),
    ("no-such-task", b'{"inputs": "a"}'),
    ("x" * 300, b'{"inputs": "a"}'),
    ("x" * 300, b"{}"),
]
TIMEOUTS = [None, "60000", "0", "-5", "soon", "", "1.5", "9" * 400, "\u0661"]


@contextmanager
def long_way() -> Iterator[None]:
    """Send all requests FastAPI's way."""

    async def nothing(request: Request, model: type[BaseModel]) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_route, "read_plain", nothing)
        yield


def ask(client: TestClient, task: str, body: bytes, timeout: str | None) -> tuple[int, Any, Any]:
    headers = {"Content-Type": "application/json", "X-Request-ID": "same"}
    if timeout is not None:
        headers["X-Request-Timeout-Ms"] = timeout.encode()  # type: ignore[assignment]
    response = client.post(f"/predict/{task}", content=body, headers=headers)
    kept = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, json.loads(response.content), kept


@pytest.mark.parametrize(("task", "body"), BODIES, ids=range(len(BODIES)))
def test_both_ways_answer_alike(client: TestClient, task: str, body: bytes) -> None:
    found = ask(client, task, body, None)
    with long_way():
        assert ask(client, task, body, None) == found


@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_both_ways_read_the_deadline_alike(client: TestClient, timeout: str | None) -> None:
    body = b'{"inputs": "a film"}'
    found = ask(client, "toy2", body, timeout)
    with long_way():
        assert ask(client, "toy2", body, timeout) == found


def test_plain_requests_take_it(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"inputs": "a film"}
    several = one | {"targets": [{"task": "toy2"}, {"task": "toy68"}]}
    with long_way():
        expected = [client.post("/predict/toy2", json=one).json()]
        expected += [client.post("/predict", json=several).json()]

    async def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a plain request went FastAPI's way")

    monkeypatch.setattr("fastapi.routing.solve_dependencies", fail)
    assert client.post("/predict/toy2", json=one).json() == expected[0]
    assert client.post("/predict", json=several).json() == expected[1]
    assert client.post("/predict/toy2", json={}).status_code == 500, "the test can't fail"
