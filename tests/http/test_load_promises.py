"""Keeps the promises about load that peers broke; numbers are rows of a list of their pitfalls.

Laws and counts only: what the same promises cost in time is measured by `make bench-promises` and
`make bench-http`.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.engine.engine import Engine
from app.engine.loader import Loader
from app.http.telemetry.metrics import Metrics
from app.pipeline import pipeline
from deltas import Backbone, delta_path, tokenize_texts, write_delta
from deltas.encoder import cpu
from deltas.encoder.packing import pack
from tests.factories import TOY_TASKS, make_delta

QUEUE_ROWS = 16
HEADS = [f"head{number}" for number in range(16)]
TOYS = ("toy2", "toy3", "toy68", "toymulti", "toyreg")


def test_peers_row_27_three_times_the_capacity_is_refused_and_no_work_is_wasted(
    make_app: Callable[..., FastAPI], gate: Any, speak_asgi: Callable[..., Coroutine[Any, Any, int]]
) -> None:
    """While the engine is busy, 48 requests come for 16 places, and 4 of those that wait leave."""
    app, heads = make_app(max_queue_rows=QUEUE_ROWS, max_rows_per_request=QUEUE_ROWS), list[Any]()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                heads.append((message["status"], dict(message["headers"])))
            await send(message)

        await app(scope, receive, note)

    async def until(is_so: Callable[[], bool]) -> None:
        for _ in range(6000):
            if is_so():
                return
            await asyncio.sleep(0.005)
        pytest.fail("it never became so")

    async def main() -> list[int]:
        async with app.router.lifespan_context(app):
            batcher = app.state.serving.batcher
            gate.close()
            running = asyncio.create_task(speak_asgi(watched, rows=1))
            assert await asyncio.to_thread(gate.entered.wait, 5)
            leaving = [asyncio.Event() for _ in range(3 * QUEUE_ROWS)]
            crowd = [asyncio.create_task(speak_asgi(watched, 1, event)) for event in leaving]
            await until(lambda: len(heads) == 2 * QUEUE_ROWS)
            assert batcher.queue.num_rows == QUEUE_ROWS
            assert len(batcher._pending) == 1 + QUEUE_ROWS, "refused requests are kept"
            waiting = [number for number, one in enumerate(crowd) if not one.done()]
            for number in waiting[:4]:
                leaving[number].set()
            await until(lambda: batcher.queue.num_rows == QUEUE_ROWS - 4)
            gate.is_open.set()
            statuses = await asyncio.gather(running, *crowd)
            assert not batcher._pending
            assert not batcher.queue.num_rows
        return statuses

    statuses = Counter(asyncio.run(main()))
    answered = 1 + QUEUE_ROWS - 4
    assert statuses == {200: answered, 429: 2 * QUEUE_ROWS, 499: 4}
    assert all(int(head[b"retry-after"]) >= 1 for status, head in heads if status == 429)
    assert sum(map(len, gate.batches)) == answered, "rows without a client were computed"


@pytest.fixture
def threads_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The threads in which slow steps have run, by step."""
    found: dict[str, set[int]] = {}

    def watch(owner: Any, name: str) -> None:
        step = getattr(owner, name)
        found[name] = set()

        def watched(*arguments: Any, **named: Any) -> Any:
            found[name].add(threading.get_ident())
            return step(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(Engine, "predict")
    watch(Loader, "load")
    watch(Metrics, "render")
    watch(pipeline, "tokenize_texts")
    return found


def test_peers_row_29_the_event_loop_runs_nothing_slow(
    start: Callable[..., TestClient], threads_of: dict[str, set[int]]
) -> None:
    """Forward passes, long texts, files and metrics have threads of their own."""
    client = start(max_slots=2)
    assert client.portal is not None
    loop_thread = client.portal.call(threading.get_ident)
    for found in threads_of.values():
        found.clear()
    long = ["a good film " * 50] * 20
    for task in ("toy2", "toymulti"):
        for strategy in ("bitfit", "head"):
            body = {"inputs": long, "strategy": strategy}
            assert client.post(f"/predict/{task}", json=body).status_code == 200
    assert client.get("/metrics").status_code == 200
    for step, found in threads_of.items():
        assert found, f"{step} did not run"
        assert loop_thread not in found, f"{step} blocks the event loop"


def test_peers_row_29_liveness_is_answered_while_every_batch_hangs(
    start: Callable[..., TestClient], gate: Any
) -> None:
    client = start(workers=2, threads=2)
    gate.close()
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(client.post, "/predict/toy2", json={"inputs": "x"}) for _ in "1234"]
        assert gate.entered.wait(5)
        for _ in range(50):
            assert client.get("/health/live").status_code == 200
        assert not any(future.done() for future in running)
        gate.is_open.set()
        assert {future.result().status_code for future in running} == {200}


@pytest.fixture(params=["cls", "mean layers"])
def heads_folder(tiny_backbone: Backbone, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """16 tasks, each with a delta that trains its head alone, with poolings in turn."""
    poolings = request.param.split()
    for number, name in enumerate(HEADS):
        pooling = poolings[number % len(poolings)]
        task = TOY_TASKS["toy2"].model_copy(update={"name": name, "pooling": pooling})
        delta = make_delta(tiny_backbone, task, "head", seed=number)
        write_delta(delta, delta_path(tmp_path, tiny_backbone.ref.id, name, "head"))
    return tmp_path


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Texts that are tokenized, and tokens that the encoder reads."""
    counts: Counter[str] = Counter()

    def counted_tokenize(tokenizer: Any, length: int, texts: Any, **named: Any) -> Any:
        counts["texts"] += len(texts)
        return tokenize_texts(tokenizer, length, texts, **named)

    def counted_pack(sequences: Any, **named: Any) -> Any:
        counts["tokens"] += sum(len(ids) for ids, _ in sequences)
        return pack(sequences, **named)

    monkeypatch.setattr(pipeline, "tokenize_texts", counted_tokenize)
    monkeypatch.setattr(cpu, "pack", counted_pack)
    return counts


def test_peers_row_38_sixteen_heads_read_a_text_once(
    start: Callable[..., TestClient], heads_folder: Path, work: Counter[str]
) -> None:
    """A batch holds the tokens of one row and one for each other head: a pass must count once."""
    client = start(deltas=(heads_folder,), max_batch_tokens=20)
    work.clear()
    body = {"inputs": "a good film"}
    alone = [client.post(f"/predict/{name}", json=body).json()["predictions"] for name in HEADS]
    assert work["texts"] == len(HEADS)
    one = work["tokens"] // len(HEADS)
    assert one + len(HEADS) - 1 == 20
    work.clear()
    answer = client.post("/predict", json=body | {"targets": [{"task": name} for name in HEADS]})
    assert work == {"texts": 1, "tokens": one}
    assert [result["predictions"] for result in answer.json()["results"]] == alone
    assert len({prediction["score"] for (prediction,) in alone}) == len(HEADS)


def lookups(client: TestClient) -> Counter[str]:
    """Return the deltas that batches have needed, by outcome."""
    text = client.get("/metrics").text
    found = re.findall(r'^deltabert_slot_lookups_total\{outcome="(\w+)"\} (\S+)$', text, re.M)
    return Counter({outcome: int(float(value)) for outcome, value in found})


@pytest.mark.parametrize(("num_tasks", "hit_share"), [(2, 1.0), (4, 1.0), (5, 0.0)])
def test_peers_row_39_the_hit_rate_alarms_when_tasks_exceed_the_slots(
    start: Callable[..., TestClient], num_tasks: int, hit_share: float
) -> None:
    """Tasks that ask in turn are the worst case of an LRU cache."""
    client = start(max_slots=4)

    def ask_all() -> None:
        for task in TOYS[:num_tasks]:
            row = {"text": "a good film", "text_pair": "not bad"}
            inputs = row if task in ("toy3", "toyreg") else "a good film"
            body = {"inputs": inputs, "strategy": "bitfit"}
            assert client.post(f"/predict/{task}", json=body).status_code == 200

    ask_all()
    before = lookups(client)
    for _ in range(4):
        ask_all()
    during = lookups(client) - before
    assert during.total() == 4 * num_tasks
    assert during["hit"] == hit_share * during.total()
    assert during["waited"] == 0, "a batch waited for a file that its request had asked for"
