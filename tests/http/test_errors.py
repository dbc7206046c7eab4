"""The one error shape, request ids, the failing engine, and what logs may never hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.engine.engine import Engine, EngineRow, Outcome

CheckError = Callable[..., dict[str, Any]]
SECRET = "the secret ingredient is cardamom"


@pytest.mark.parametrize("path", ["/nope", "/predict/toy2/more", "/tasks//", "/%00", "/health"])
def test_an_unknown_path(client: TestClient, check_error: CheckError, path: str) -> None:
    check_error(client.get(path), 404, "unknown_path")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/tasks", "GET"),
        ("GET", "/predict", "POST"),
        ("DELETE", "/predict/toy2", "POST"),
        ("PATCH", "/deltas/toy2/head", "GET, PUT, DELETE"),
        ("POST", "/traffic/toy2/head", "GET, PUT, DELETE"),
    ],
)
def test_a_wrong_method(
    client: TestClient, check_error: CheckError, method: str, path: str, allowed: str
) -> None:
    response = client.request(method, path)
    assert allowed in check_error(response, 405, "method_not_allowed")["message"]
    assert response.headers["allow"] == allowed


def test_a_request_id_is_made_or_taken_from_the_client(client: TestClient) -> None:
    made = {client.get("/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    own = client.get("/health/live", headers={"X-Request-ID": "My-id_1.2"})
    assert own.headers["x-request-id"] == "My-id_1.2"


@pytest.mark.parametrize("unsound", ["", "a b", "x" * 65, "a\tb", "<script>", "a;b=c"])
def test_an_unsound_request_id_is_replaced(client: TestClient, unsound: str) -> None:
    answer = client.get("/health/live", headers={"X-Request-ID": unsound})
    assert len(answer.headers["x-request-id"]) == 32


def test_errors_carry_the_request_id(client: TestClient, check_error: CheckError) -> None:
    response = client.get("/nope", headers={"X-Request-ID": "find-me"})
    assert check_error(response, 404, "unknown_path")["request_id"] == "find-me"


def break_engine(monkeypatch: pytest.MonkeyPatch, result: Callable[[Any], Any]) -> None:
    run = Engine.predict

    def broken(engine: Engine, rows: Sequence[EngineRow], threads: int) -> Any:
        return result(run(engine, rows, threads))

    monkeypatch.setattr(Engine, "predict", broken)


def fail(_logits: Any) -> Any:
    raise RuntimeError("internal detail")


@pytest.mark.parametrize(
    "result",
    [
        fail,
        lambda logits: logits[:-1],
        lambda logits: [[float("nan")] * len(row) for row in logits],
        lambda logits: [[float("inf")] * len(row) for row in logits],
        lambda logits: [row[:-1] for row in logits],
    ],
    ids=["raises", "too few rows", "nan", "infinite", "too few logits"],
)
def test_a_failing_engine_is_a_500_that_gives_nothing_away(
    start: Callable[..., TestClient],
    check_error: CheckError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result: Callable[[Any], Any],
) -> None:
    client = start()
    with monkeypatch.context() as patch:
        break_engine(patch, result)
        # The batcher holds the engine's method, so the app must be a new one.
        broken = start()
        response = broken.post("/predict/toy2", json={"inputs": SECRET})
    error = check_error(response, 500, "internal_error")
    assert "request id" in error["message"]
    assert "internal detail" not in response.text
    assert SECRET not in caplog.text
    text = broken.get("/metrics").text
    assert 'deltabert_dropped_requests_total{reason="failed"} 1.0' in text
    assert "deltabert_rows_total{" not in text
    assert broken.get("/health/live").status_code == 200
    assert client.post("/predict/toy2", json={"inputs": "x"}).status_code == 200


def test_a_bad_row_of_another_request_does_not_spoil_mine(
    gate: Any,
    start: Callable[..., TestClient],
    wait_for_queue: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Engine.predict

    def poisoned(engine: Engine, rows: Sequence[EngineRow], threads: int) -> list[Outcome]:
        answers = run(engine, rows, threads)
        if any(row.record.manifest.task.name == "toy68" for row in rows):
            raise RuntimeError("toy68 is poison here")
        return answers

    monkeypatch.setattr(Engine, "predict", poisoned)
    client = start()
    body = {"inputs": ["good"] * 3}
    gate.close()
    with ThreadPoolExecutor(6) as pool:
        blocked = pool.submit(client.post, "/predict/toy2", json={"inputs": "x"})
        assert gate.entered.wait(5)
        good = [pool.submit(client.post, "/predict/toy2", json=body) for _ in range(3)]
        bad = pool.submit(client.post, "/predict/toy68", json=body)
        wait_for_queue(client, 12)
        gate.is_open.set()
        statuses = [future.result().status_code for future in (blocked, *good)]
        assert statuses == [200] * 4
        assert bad.result().status_code == 500


def test_an_unexpected_error_has_the_shape_and_is_logged(
    start: Callable[..., TestClient],
    check_error: CheckError,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("bug")

    client = start()
    monkeypatch.setattr("app.pipeline.pipeline.read_texts", bug)
    response = client.post("/predict/toy2", json={"inputs": "x"})
    check_error(response, 500, "internal_error")
    assert "bug" not in response.text
    assert "KeyError" in caplog.text


def test_the_log_line_says_much_and_never_the_text(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {"X-Request-ID": "log-me"}
    client.post("/predict/toy2", json={"inputs": [SECRET, SECRET]}, headers=headers)
    client.post("/predict/toy3", json={"inputs": SECRET}, headers=headers)
    client.post("/predict/toy2", json={"inputs": {SECRET: SECRET}}, headers=headers)
    client.post("/predict/toy2?q=" + SECRET, content=SECRET, headers=headers)
    client.get(f"/{SECRET}", headers=headers)
    lines = [
        record.getMessage() for record in caplog.records if record.name == "app.http.middleware"
    ]
    assert len(lines) == 5
    assert lines[0].startswith("POST /predict/{task} 200 rows=2 tokens=")
    for word in ("queue=", "compute=", "total="):
        assert word in lines[0]
    assert "GET unmatched 404" in lines[4]
    assert SECRET not in "".join(record.getMessage() for record in caplog.records)


def test_the_log_line_carries_numbers_for_json(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.http.middleware")
    client.post("/predict/toy2", json={"inputs": "good film"})
    (record,) = [record for record in caplog.records if record.name == "app.http.middleware"]
    facts = record.__dict__["facts"]
    assert facts["rows"] == 1
    assert facts["tokens"] > 3
    assert facts["status"] == 200
    assert 0 < facts["compute_ms"] <= facts["total_ms"]


def test_cors_is_off_until_origins_are_named(start: Callable[..., TestClient]) -> None:
    headers = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in start().get("/tasks", headers=headers).headers
    client = start(cors_origins="https://page.example")
    allowed = client.get("/tasks", headers=headers).headers
    assert allowed["access-control-allow-origin"] == "https://page.example"
    asked = headers | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Content-Type, X-Request-Timeout-Ms, X-Sticky-Key",
    }
    assert client.options("/predict/toy2", headers=asked).status_code == 200
    other = client.get("/tasks", headers={"Origin": "https://evil.example"}).headers
    assert "access-control-allow-origin" not in other
