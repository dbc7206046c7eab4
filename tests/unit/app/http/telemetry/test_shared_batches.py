"""Tasks that met in a batch, over the last batches, in a bounded number of series."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from app.http.telemetry import metrics
from app.http.telemetry.metrics import Metrics, SharedBatches


def test_requests_of_one_batch_are_put_together() -> None:
    shared = SharedBatches(CollectorRegistry())
    shared.note([1, 2], ["cola"])
    shared.note([1], ["sst2"])
    shared.note([3], ["rte", "cola", "sst2"])  # a fan-out
    shared.note([4], ["cola", "cola"])  # two strategies of a task
    assert dict(shared.pairs()) == {("cola", "sst2"): 2, ("cola", "rte"): 1, ("rte", "sst2"): 1}


def test_batches_are_forgotten_and_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SHARED_BATCHES", 3)
    monkeypatch.setattr(metrics, "_MAX_PAIRS", 2)
    shared = SharedBatches(CollectorRegistry())
    for number in range(10):
        shared.note([number], ["a", f"b{number}"])
    assert shared.pairs() == [(("a", "b7"), 1), (("a", "b8"), 1)]


def test_a_fan_out_to_many_tasks_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MAX_SHARING_TASKS", 3)
    shared = SharedBatches(CollectorRegistry())
    shared.note([1], [f"task{number}" for number in range(200)])
    assert len(shared.pairs()) == 3


def test_the_pairs_are_a_gauge() -> None:
    made = Metrics()
    made.on_tasks([1], ["cola", "sst2"])
    lines = made.render().decode().splitlines()
    assert 'deltabert_shared_batches{other="sst2",task="cola"} 1.0' in lines
    assert "deltabert_shared_batches_seen 1.0" in lines
