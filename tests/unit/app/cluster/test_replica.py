"""A replica of Ray without a cluster: how many are wanted, its health, its answers' header."""

from __future__ import annotations

import asyncio
import warnings
from importlib import import_module
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own code uses deprecated parts of pydantic
    from ray.serve.config import AutoscalingContext

from app.cluster.launch import ClusterOptions, _autoscaling
from app.cluster.replica import (
    MIDDLEWARE,
    QUEUE_S,
    TARGET_QUEUE_S,
    OneRequestId,
    RayHeaders,
    Replica,
    wanted_replicas,
)
from app.errors import NotReadyError
from app.process.settings import Settings
from deltas import Backbone


def wanted(waits: list[float], now: int = 4) -> float:
    """The replicas that are wanted while rows have waited so long in each of them."""
    options: dict[str, Any] = {
        "deployment_id": None,
        "deployment_name": "server",
        "app_name": "deltabert",
        "current_num_replicas": now,
        "target_num_replicas": now,
        "running_replicas": [],
        "total_num_requests": 0.0,
        "total_queued_requests": 0.0,
        "aggregated_metrics": {QUEUE_S: dict(enumerate(waits))} if waits else {},
        "raw_metrics": {},
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 100,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": 0.0,
        "config": None,
    }
    number, state = wanted_replicas(AutoscalingContext(**options))
    assert state == {}
    return number


@pytest.mark.parametrize(
    ("waits", "number"),
    [
        ([], 4),  # nothing is known
        ([0.0] * 4, 0),  # Ray keeps the least number
        ([TARGET_QUEUE_S] * 4, 4),
        ([1.05 * TARGET_QUEUE_S] * 4, 4),
        ([1.5 * TARGET_QUEUE_S] * 4, 6),
        ([4 * TARGET_QUEUE_S, 0.0, 0.0, 0.0], 4),  # the mean counts
        ([20 * TARGET_QUEUE_S] * 4, 8),
        ([0.5 * TARGET_QUEUE_S] * 4, 2),
    ],
)
def test_replicas_follow_the_time_that_rows_wait(waits: list[float], number: float) -> None:
    assert wanted(waits) == pytest.approx(number)


def test_ray_runs_the_policy_from_its_own_copy() -> None:
    config = _autoscaling(ClusterOptions(2, 5, 1))
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (2, 2, 5)
    policy = config.policy.get_policy()  # unpickled, as the controller does
    context = AutoscalingContext.__new__(AutoscalingContext)
    context._aggregated_metrics_value = {QUEUE_S: {"one": 1.0, "two": 1.0}}
    context.current_num_replicas = context.target_num_replicas = 2
    assert policy(context) == (4.0, {})


def test_a_replica_that_has_not_started_is_not_healthy(tiny_backbone: Backbone) -> None:
    replica = Replica(Settings(zoo=False))
    with pytest.raises(NotReadyError, match="starting or stopping"):
        asyncio.run(replica.check_health())
    assert asyncio.run(replica.record_autoscaling_stats()) == {QUEUE_S: 0.0}


def test_headers_by_which_clients_would_steer_ray_are_dropped() -> None:
    found: dict[bytes, list[bytes]] = {}

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            found.setdefault(name, []).append(value)

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    sent = [
        (b"x-request-id", b"not \xff sound"),
        (b"x-request-id", b"sound-1"),
        (b"x-request-timeout-seconds", b"0.001"),
        (b"x-request-disconnect-disabled", b"?0"),
        (b"serve_multiplexed_model_id", b"other"),
        (b"x-request-timeout-ms", b"500"),
    ]
    asyncio.run(RayHeaders(server)({"type": "http", "headers": sent}, receive, send))
    assert found == {
        b"x-request-id": [b"sound-1"],
        b"x-request-disconnect-disabled": [b"?1"],
        b"x-request-timeout-ms": [b"500"],
    }


def test_ray_finds_the_middleware_by_its_name() -> None:
    module, _, name = MIDDLEWARE.rpartition(".")
    (surrounding,) = getattr(import_module(module), name)()
    assert surrounding.cls is RayHeaders


def test_an_answer_keeps_its_other_headers() -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", b"1"), (b"retry-after", b"5")]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    asyncio.run(OneRequestId(app)({"type": "http"}, receive, send))
    assert sent[0]["headers"] == [(b"retry-after", b"5")]
    assert sent[1]["body"] == b"{}"
