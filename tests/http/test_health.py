"""Liveness, readiness and metrics, with a healthy, a dead, a stalled and an idle engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.engine import engine as engine_module
from app.engine.engine import Engine
from app.http.telemetry.metrics import Metrics
from deltas.hardware import multiplies_int8_exactly

CheckError = Callable[..., dict[str, Any]]


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    body = client.get("/health/ready").json()
    assert body["status"] == "ready"
    assert body["latency_ms"] > 0


def test_the_latency_covers_the_tokenizer(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize = Engine.tokenize
    client = start()

    def tokenize_slowly(engine: Engine, record: Any, texts: Any) -> Any:
        time.sleep(0.05)
        return tokenize(engine, record, texts)

    monkeypatch.setattr(Engine, "tokenize", tokenize_slowly)
    assert client.get("/health/ready").json()["latency_ms"] >= 50


def test_probes_are_no_load(start: Callable[..., TestClient], gate: Any) -> None:
    client = start()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.get("/health/ready"), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(gate.batches) <= 3


def test_a_dead_worker_is_seen_within_a_second(
    start: Callable[..., TestClient], check_error: CheckError, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Engine.predict
    dying: list[bool] = []

    def die(engine: Engine, rows: Any, threads: int) -> Any:
        if dying:
            raise SystemExit(1)
        return run(engine, rows, threads)

    monkeypatch.setattr(Engine, "predict", die)
    client = start()
    assert client.get("/health/ready").status_code == 200
    dying.append(True)
    killed_at = time.monotonic()
    check_error(client.post("/predict/toy2", json={"inputs": "x"}), 503, "not_ready")
    check_error(client.get("/health/ready"), 503, "not_ready")
    assert time.monotonic() - killed_at < 1.0
    error = check_error(client.get("/health/live"), 503, "not_ready")
    assert "restarted" in error["message"]
    check_error(client.post("/predict/toy2", json={"inputs": "x"}), 503, "not_ready")


def test_a_stalled_engine_is_not_ready_but_alive(
    start: Callable[..., TestClient], gate: Any, check_error: CheckError
) -> None:
    client = start(ready_timeout_s=0.2)
    gate.close()
    error = check_error(client.get("/health/ready"), 503, "not_ready")
    assert "prediction failed" in error["message"]
    assert client.get("/health/live").status_code == 200
    gate.is_open.set()
    time.sleep(1.0)
    assert client.get("/health/ready").status_code == 200


def test_nothing_served_is_not_ready(
    start: Callable[..., TestClient], tmp_path: Path, check_error: CheckError
) -> None:
    client = start(deltas=(tmp_path,))
    error = check_error(client.get("/health/ready"), 503, "not_ready")
    assert "no deltas" in error["message"]
    assert client.get("/health/live").status_code == 200
    assert client.get("/tasks").json() == {"tasks": [], "total": 0, "next": None}
    check_error(client.post("/predict/toy2", json={"inputs": "x"}), 404, "not_found")
    assert client.get("/openapi.json").status_code == 200


def test_an_app_that_is_not_started_says_so(
    make_app: Callable[..., Any], check_error: CheckError
) -> None:
    client = TestClient(make_app(), raise_server_exceptions=False)  # no lifespan
    for path in ("/health/live", "/health/ready", "/tasks", "/metrics"):
        check_error(client.get(path), 503, "not_ready")


def test_liveness_waits_for_no_prediction(start: Callable[..., TestClient], gate: Any) -> None:
    """`make bench-http` measures the times of liveness under load; here the order counts."""
    client = start()
    gate.close()
    body = {"inputs": [f"a very good film {number}" for number in range(500)]}
    with ThreadPoolExecutor(4) as pool:
        load = [pool.submit(client.post, "/predict/toy2", json=body) for _ in range(8)]
        assert gate.entered.wait(30)
        for _ in range(10):
            assert client.get("/health/live").status_code == 200
        assert not any(future.done() for future in load)
        gate.is_open.set()
        assert {future.result().status_code for future in load} == {200}


@pytest.mark.skipif(not multiplies_int8_exactly(), reason="int8 is not exact on this CPU")
def test_close_calls_are_counted_by_delta(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "LOW_MARGIN", math.inf)
    client = start(precision="int8", warm_up=True)
    assert "deltabert_close_calls_total{" not in client.get("/metrics").text, "of the warm-up"
    for limit in (0.0, math.inf):
        monkeypatch.setattr(engine_module, "LOW_MARGIN", limit)
        body = {"inputs": ["a good film", "not very bad"], "strategy": "bitfit"}
        assert client.post("/predict/toy2", json=body).status_code == 200
    text = client.get("/metrics").text
    assert 'deltabert_int8_rows_total{strategy="bitfit",task="toy2"} 4.0' in text
    assert 'deltabert_close_calls_total{strategy="bitfit",task="toy2"} 2.0' in text


def test_metrics(start: Callable[..., TestClient]) -> None:
    client = start()
    client.post("/predict/toy2", json={"inputs": ["a", "b"], "strategy": "head"})
    client.post("/predict/nope-1", json={"inputs": "x"})
    client.get("/some/secret/path")
    client.request("BREW", "/tasks")
    text = client.get("/metrics").text
    for line in (
        'deltabert_requests_total{method="POST",route="/predict/{task}",status="200"} 1.0',
        'deltabert_requests_total{method="POST",route="/predict/{task}",status="404"} 1.0',
        'deltabert_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'deltabert_requests_total{method="OTHER",route="/tasks",status="405"} 1.0',
        'deltabert_rows_total{strategy="head",task="toy2"} 2.0',
        "deltabert_batch_rows_sum 2.0",
        "deltabert_forward_seconds_count 1.0",
        "deltabert_queue_seconds_count 1.0",
        "deltabert_queue_rows 0.0",
        "deltabert_queue_tokens 0.0",
        'deltabert_dropped_requests_total{reason="expired"} 0.0',
        "deltabert_deltas 25.0",
    ):
        assert line in text.splitlines(), line
    assert 'backbone="tiny-bert"' in text
    assert "process_resident_memory_bytes" in text
    assert "nope" not in text
    assert "secret" not in text


def test_metrics_are_not_written_in_the_event_loop(
    start: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    render = Metrics.render

    def render_elsewhere(metrics: Metrics) -> bytes:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return render(metrics)

    monkeypatch.setattr(Metrics, "render", render_elsewhere)
    assert start().get("/metrics").status_code == 200


def test_two_apps_count_for_themselves(start: Callable[..., TestClient]) -> None:
    first, second = start(), start()
    first.get("/tasks")
    assert 'route="/tasks"' in first.get("/metrics").text
    assert 'route="/tasks"' not in second.get("/metrics").text
