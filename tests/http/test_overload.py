"""More work than the engine can do: refusals, deadlines, clients that leave, and a clean end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.batching.admission import ThroughputEstimate
from app.batching.queue import BatchLimits

CheckError = Callable[..., dict[str, Any]]
WaitForQueue = Callable[[TestClient, int], None]
SpeakAsgi = Callable[..., Coroutine[Any, Any, int]]
SLOW = re.compile(
    r"the estimated wait is \d\d\.\d\d s, but the server \(DELTABERT_MAX_QUEUE_S\) allows 50\.00 s "
    r"\(30 rows, \d+ tokens queued\); try again in 60 s"
)


def predict(client: TestClient, rows: int = 1, **headers: str) -> Any:
    return client.post("/predict/toy2", json={"inputs": ["a film"] * rows}, headers=headers)


def dropped(client: TestClient, reason: str) -> float:
    start = f'deltabert_dropped_requests_total{{reason="{reason}"}} '
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(start)]
    return float(line.removeprefix(start))


def test_a_full_queue_is_a_429_that_says_when_to_come_back(
    start: Callable[..., TestClient],
    gate: Any,
    check_error: CheckError,
    wait_for_queue: WaitForQueue,
) -> None:
    client = start(max_queue_rows=8, max_rows_per_request=8)
    gate.close()
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(predict, client)
        assert gate.entered.wait(5)
        waiting = pool.submit(predict, client, 6)
        wait_for_queue(client, 6)
        refused = predict(client, 3)
        error = check_error(refused, 429, "overloaded")
        assert re.fullmatch(
            r"the queue is full \(6 rows, \d+ tokens\); try again in \d+ s", error["message"]
        )
        assert int(refused.headers["retry-after"]) >= 1
        assert dropped(client, "rejected") == 1
        assert client.get("/health/live").status_code == 200
        gate.is_open.set()
        assert running.result().status_code == waiting.result().status_code == 200
    assert predict(client, 3).status_code == 200


@pytest.fixture
def crowded(
    start: Callable[..., TestClient], gate: Any, wait_for_queue: WaitForQueue
) -> Iterator[TestClient]:
    """A server with rows of "toy2" waiting for a minute, as it believes."""
    client = start(max_queue_s=50.0, deadline_s=100.0, root_path="/prefix")
    gate.close()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(predict, client)
        assert gate.entered.wait(5)
        waiting = pool.submit(predict, client, 30)
        wait_for_queue(client, 30)
        batcher = client.app.state.serving.batcher  # type: ignore[attr-defined]
        slow, now = ThroughputEstimate(), time.monotonic()
        slow.end(slow.begin(batcher.queue.num_tokens, now - 60, under_load=True), now)
        batcher.admission._throughput = slow
        yield client
        gate.is_open.set()
        assert running.result().status_code == waiting.result().status_code == 200


def test_load_is_shed_under_a_path_prefix(crowded: TestClient, check_error: CheckError) -> None:
    headers = {"Content-Type": "application/json"}
    refused = crowded.post("/prefix/predict/toy2", content=b"{no JSON", headers=headers)
    assert SLOW.fullmatch(check_error(refused, 429, "overloaded")["message"])


def test_requests_that_would_wait_too_long_are_refused_before_their_bodies_are_read(
    crowded: TestClient, check_error: CheckError, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="app"):
        for _ in range(20):
            headers = {"Content-Type": "application/json", "X-Request-ID": "mine"}
            refused = crowded.post("/predict/toy2", content=b"{no JSON", headers=headers)
            error = check_error(refused, 429, "overloaded")
            assert error["request_id"] == "mine"
            assert SLOW.fullmatch(error["message"]), error["message"]
            assert error["details"] is None
            assert refused.headers["retry-after"] == "60"
    (line,) = [record.getMessage() for record in caplog.records]
    assert SLOW.fullmatch(line.removeprefix("refused 1 since the last such line: "))
    assert dropped(crowded, "rejected") == 20
    counted = 'deltabert_requests_total{method="POST",route="/predict/{task}",status="429"} 20.0'
    assert counted in crowded.get("/metrics").text
    assert crowded.get("/health/live").status_code == 200


def test_another_task_is_served_sooner(crowded: TestClient, check_error: CheckError) -> None:
    """The queue is full of rows of another task, so the body is read and found wrong."""
    other = crowded.post("/predict/toy68", json={"inputs": 7})
    check_error(other, 422, "invalid_input")
    both = {"inputs": 7, "targets": [{"task": "toy2"}, {"task": "toy68"}]}
    check_error(crowded.post("/predict", json=both), 422, "invalid_input")


def test_requests_that_exceed_the_clients_deadline_are_refused(
    crowded: TestClient, check_error: CheckError
) -> None:
    crowded.app.state.serving.batcher.admission._limits = BatchLimits(1, 1, 99, 9999)  # type: ignore[attr-defined]
    body = {"inputs": 7}
    late = crowded.post("/predict/toy2", json=body, headers={"X-Request-Timeout-Ms": "50000"})
    error = check_error(late, 429, "overloaded")
    assert "the request's deadline" in error["message"]
    wait_s, allowed_s = map(float, re.findall(r"(\d+\.\d\d) s", error["message"]))
    assert 50 < wait_s <= 60
    assert 49 < allowed_s <= 50
    soon = crowded.post("/predict/toy2", json=body, headers={"X-Request-Timeout-Ms": "70000"})
    check_error(soon, 422, "invalid_input")


def test_the_canary_passes_a_full_queue(
    start: Callable[..., TestClient], gate: Any, wait_for_queue: WaitForQueue
) -> None:
    client = start(max_queue_rows=8, max_rows_per_request=8, ready_timeout_s=10.0)
    gate.close()
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(predict, client)
        assert gate.entered.wait(5)
        waiting = pool.submit(predict, client, 8)
        wait_for_queue(client, 8)
        probe = pool.submit(client.get, "/health/ready")
        wait_for_queue(client, 9)
        gate.is_open.set()
        assert probe.result().status_code == 200
        assert running.result().status_code == waiting.result().status_code == 200
    assert gate.batches[1][0].tokens != gate.batches[1][1].tokens, "the probe came first"


def test_the_clients_deadline(
    start: Callable[..., TestClient], gate: Any, check_error: CheckError
) -> None:
    client = start()
    gate.close()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(predict, client)
        assert gate.entered.wait(5)
        started = time.monotonic()
        late = client.post(
            "/predict/toy2", json={"inputs": "x"}, headers={"X-Request-Timeout-Ms": "80"}
        )
        assert 0.05 < time.monotonic() - started < 5
        assert "0.08 s" in check_error(late, 504, "deadline_exceeded")["message"]
        assert dropped(client, "expired") == 1
        gate.is_open.set()
        assert running.result().status_code == 200
    assert len(gate.batches) == 1, "an expired row was computed"


@pytest.mark.parametrize("timeout", ["99999999", "9" * 400])
def test_the_servers_deadline_caps_the_clients(
    start: Callable[..., TestClient], gate: Any, check_error: CheckError, timeout: str
) -> None:
    client = start(deadline_s=0.1)
    gate.close()
    late = client.post(
        "/predict/toy2", json={"inputs": "x"}, headers={"X-Request-Timeout-Ms": timeout}
    )
    check_error(late, 504, "deadline_exceeded")
    gate.is_open.set()


@pytest.mark.parametrize("timeout", ["0", "-5", "soon", "1.5", "", "1e3", "+1", "1_0"])
def test_a_wrong_deadline_is_named(
    client: TestClient, check_error: CheckError, timeout: str
) -> None:
    response = client.post(
        "/predict/toy2", json={"inputs": "x"}, headers={"X-Request-Timeout-Ms": timeout}
    )
    error = check_error(response, 422, "invalid_input")
    (detail,) = error["details"]
    assert detail["field"] == "X-Request-Timeout-Ms"
    problem = "must be a whole number of milliseconds, 1 or more, in digits alone"
    assert detail["problem"] == problem


def test_the_rows_of_a_client_that_leaves_are_not_computed(
    make_app: Callable[..., FastAPI], gate: Any, speak_asgi: SpeakAsgi
) -> None:
    app = make_app()

    async def main() -> None:
        async with app.router.lifespan_context(app):
            gate.close()
            leaving = asyncio.Event()
            first = asyncio.create_task(speak_asgi(app, rows=1))
            assert await asyncio.to_thread(gate.entered.wait, 5)
            second = asyncio.create_task(speak_asgi(app, rows=2, hang_up=leaving))
            await until_queued(app, 2)
            leaving.set()
            assert await asyncio.wait_for(second, 5) == 499
            await until_queued(app, 0)
            gate.is_open.set()
            assert await first == 200

    asyncio.run(main())
    assert [len(batch) for batch in gate.batches] == [1]
    text = app.state.metrics.render().decode()
    assert 'deltabert_dropped_requests_total{reason="cancelled"} 1.0' in text


async def until_queued(app: FastAPI, num_rows: int) -> None:
    """Wait until the queue holds a number of rows."""
    for _ in range(2000):
        if app.state.serving.batcher.queue.num_rows == num_rows:
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"there never were {num_rows} rows in the queue")


def test_a_shutdown_finishes_accepted_requests(
    make_app: Callable[..., FastAPI], gate: Any, speak_asgi: SpeakAsgi
) -> None:
    app = make_app()

    async def main() -> None:
        gate.close()
        async with app.router.lifespan_context(app):
            accepted = [asyncio.create_task(speak_asgi(app, rows=1))]
            assert await asyncio.to_thread(gate.entered.wait, 5)
            accepted += [asyncio.create_task(speak_asgi(app, rows=n)) for n in (2, 3)]
            await until_queued(app, 5)
            asyncio.get_running_loop().call_later(0.2, gate.is_open.set)
        assert await asyncio.gather(*accepted) == [200] * 3
        assert await speak_asgi(app, rows=1) == 503

    asyncio.run(main())


def test_a_shutdown_answers_503_to_requests_that_it_cannot_finish(
    make_app: Callable[..., FastAPI], gate: Any, speak_asgi: SpeakAsgi
) -> None:
    app = make_app(shutdown_timeout_s=0.1)

    async def main() -> None:
        gate.close()
        async with app.router.lifespan_context(app):
            accepted = [asyncio.create_task(speak_asgi(app, rows=1))]
            assert await asyncio.to_thread(gate.entered.wait, 5)
            accepted += [asyncio.create_task(speak_asgi(app, rows=n)) for n in (2, 3)]
            await until_queued(app, 5)
        assert await asyncio.gather(*accepted) == [503] * 3

    asyncio.run(main())
