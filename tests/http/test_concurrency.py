"""Many clients at once: every answer is the one that the same request gets alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas.backbone.backbone import weights_fingerprint

NUM_CLIENTS = 64
STRATEGIES = ("bitfit", "layernorm", "random:0.05", "head", "top:1")
FIELDS = {
    "toy2": ("sentence",),
    "toy3": ("premise", "hypothesis"),
    "toyreg": ("first", "second"),
    "toymulti": ("text",),
    "toy68": ("utterance",),
}
WORDS = ("the", "good", "bad", "film", "was", "not", "very", "long", "and", "red", "7", "!", "?")


def make_request(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body: one to five rows of any length for any delta."""
    task = chance.choice(list(FIELDS))
    rows = [
        {
            field: " ".join(chance.choices(WORDS, k=chance.randint(0, 30))) or "film"
            for field in FIELDS[task]
        }
        for _ in range(chance.randint(1, 5))
    ]
    return f"/predict/{task}", {"inputs": rows, "strategy": chance.choice(STRATEGIES)}


def assert_same(answer: dict[str, Any], alone: dict[str, Any]) -> None:
    """Equal but for rounding: 1e-5, and the same label."""
    assert {key: value for key, value in answer.items() if key != "predictions"} == {
        key: value for key, value in alone.items() if key != "predictions"
    }
    for one, other in zip(answer["predictions"], alone["predictions"], strict=True):
        assert one.get("label") == other.get("label")
        assert one.get("labels") == other.get("labels")
        for key in ("scores", "value"):
            if key in other:
                assert one[key] == pytest.approx(other[key], abs=1e-5)


def send(client: TestClient, request: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    response = client.post(request[0], json=request[1])
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.fixture(scope="module")
def requests() -> list[tuple[str, dict[str, Any]]]:
    """Four requests for each client."""
    chance = random.Random(7)
    return [make_request(chance) for _ in range(4 * NUM_CLIENTS)]


@pytest.fixture(scope="module")
def alone(client: TestClient, requests: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each request is answered alone; no setting changes it."""
    return [send(client, request) for request in requests]


@pytest.mark.parametrize(
    "settings", [{}, {"workers": 3, "threads": 3}, {"workers": 2, "threads": 2, "max_slots": 9}]
)
def test_sixty_four_clients_mixing_tasks_and_strategies(
    start: Callable[..., TestClient],
    requests: list[tuple[str, dict[str, Any]]],
    alone: list[dict[str, Any]],
    gate: Any,
    settings: dict[str, int],
) -> None:
    # A busy machine must not make this a test of overload.
    server = start(max_batch_rows=24, max_queue_s=30, **settings)
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        together = list(pool.map(partial(send, server), requests))
    for answer, expected in zip(together, alone, strict=True):
        assert_same(answer, expected)
    mixed = [len({row.record.version for row in batch}) for batch in gate.batches]
    assert max(mixed) > 3, "rows of different deltas never shared a batch"
    assert len(gate.batches) < len(requests), "nothing was batched"


def test_batches_fill_up_under_mixed_traffic(
    start: Callable[..., TestClient], gate: Any, wait_for_queue: Callable[..., None]
) -> None:
    client = start(max_batch_rows=10)
    gate.close()
    with ThreadPoolExecutor(61) as pool:
        chance = random.Random(3)
        first = pool.submit(client.post, "/predict/toy2", json={"inputs": "x"})
        assert gate.entered.wait(5)
        rest = []
        for _ in range(60):
            path, body = make_request(chance)
            # So short that a task whose rows are left alone at the end may fill a batch, too.
            body["inputs"] = [dict.fromkeys(body["inputs"][0], "film")]
            rest.append(pool.submit(client.post, path, json=body))
        wait_for_queue(client, 60)
        gate.is_open.set()
        assert {future.result().status_code for future in (first, *rest)} == {200}
    assert [len(batch) for batch in gate.batches] == [1] + [10] * 6


def test_a_hot_client_does_not_starve_the_others(
    start: Callable[..., TestClient], gate: Any, wait_for_queue: Callable[..., None]
) -> None:
    client = start(max_batch_rows=8)
    hot = {"inputs": ["a film"] * 300}
    gate.close()
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(client.post, "/predict/toy2", json=hot) for _ in range(2)]
        wait_for_queue(client, 600 - 8)
        cold = pool.submit(client.post, "/predict/toy68", json={"inputs": "good"})
        wait_for_queue(client, 600 - 8 + 1)
        gate.is_open.set()
        assert cold.result().status_code == 200
        assert {future.result().status_code for future in running} == {200}
    tasks = [{row.record.manifest.task.name for row in batch} for batch in gate.batches]
    assert "toy68" in set().union(*tasks[:3])


def test_the_backbone_is_the_same_after_all_of_it(client: TestClient, tiny_backbone: Any) -> None:
    chance = random.Random(11)
    for _ in range(20):
        path, body = make_request(chance)
        assert client.post(path, json=body).status_code == 200
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


@pytest.mark.slow
def test_overload_for_a_while_is_answered_by_200_and_429_only(
    start: Callable[..., TestClient],
) -> None:
    client = start(max_queue_rows=32, max_rows_per_request=8, max_batch_rows=8)
    stop_at = time.monotonic() + 3

    def hammer(seed: int) -> list[int]:
        chance, statuses = random.Random(seed), []
        while time.monotonic() < stop_at:
            path, body = make_request(chance)
            statuses.append(client.post(path, json=body).status_code)
        return statuses

    with ThreadPoolExecutor(32) as pool:
        statuses = [status for each in pool.map(hammer, range(32)) for status in each]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) > 20
    assert client.get("/health/ready").status_code == 200
