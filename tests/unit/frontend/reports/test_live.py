"""Rates and quantiles from two reads of real metrics."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from app.http.telemetry.metrics import Metrics
from frontend.errors import ServerError
from frontend.reports.live import Reading, activity, quantile

START = "process_start_time_seconds 1000.0\n"


def read(registry: CollectorRegistry, at: float, start: str = START) -> Reading:
    return Reading.of(generate_latest(registry).decode() + start, at)


def test_counters_become_rates() -> None:
    registry = CollectorRegistry()
    rows = Counter("deltabert_rows", "", ("task", "strategy"), registry=registry)
    tokens = Counter("deltabert_tokens", "", ("task", "strategy"), registry=registry)
    requests = Counter("deltabert_requests", "", ("method", "route"), registry=registry)
    rows.labels("cola", "head").inc(100)
    before = read(registry, 10.0)
    rows.labels("cola", "head").inc(8)
    rows.labels("sst2", "bitfit").inc(20)  # a series that began between the reads
    tokens.labels("sst2", "bitfit").inc(300)
    rows.labels("mrpc", "bitfit").inc(0)
    requests.labels("POST", "/predict/{task}").inc(6)
    requests.labels("GET", "/metrics").inc(1)
    found = activity(before, read(registry, 14.0))
    assert found is not None
    assert (found.rows_per_s, found.tokens_per_s) == (7.0, 75.0)
    assert found.requests_per_s == 1.5, "reading the metrics is no prediction"
    assert [(each.task, each.rows_per_s) for each in found.busy] == [("sst2", 5.0), ("cola", 2.0)]
    assert (found.batch_rows, found.batch_fill, found.p50_s) == (None, None, None)


def test_batches_are_means_and_latencies_are_quantiles() -> None:
    metrics = Metrics()
    before = Reading.of(metrics.render().decode(), 0.0)
    for rows, fill in ((2, 0.1), (6, 0.5)):
        metrics.on_batch(rows, 10 * rows, 0.01, fill)
    for seconds in (0.02, 0.02, 0.02, 2.0):
        metrics.on_request("POST", "/predict/{task}", 200, seconds)
    metrics.on_request("GET", "/deltas", 200, 20.0)
    found = activity(before, Reading.of(metrics.render().decode(), 2.0))
    assert found is not None
    assert (found.batches_per_s, found.batch_rows) == (1.0, 4.0)
    assert found.batch_fill == pytest.approx(0.3)
    assert found.p50_s is not None
    assert 0.01 <= found.p50_s <= 0.025
    assert found.p99_s is not None
    assert 1 <= found.p99_s <= 2.5


def test_quantiles_are_near_those_of_the_values() -> None:
    registry = CollectorRegistry()
    bounds = [round(0.05 * step, 2) for step in range(1, 61)]
    histogram = Histogram("seconds", "", registry=registry, buckets=bounds)
    values = np.random.default_rng(0).gamma(2.0, 0.25, 4000)
    for value in values:
        histogram.observe(value)
    samples = read(registry, 0.0).samples["seconds_bucket"]
    buckets = {float(dict(labels)["le"]): count for labels, count in samples.items()}
    for share in (0.5, 0.9, 0.99):
        assert quantile(buckets, share) == pytest.approx(np.quantile(values, share), abs=0.05)


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({}, None),
        ({0.1: 0.0, float("inf"): 0.0}, None),
        ({0.1: 0.0, 0.2: 4.0, float("inf"): 4.0}, 0.15),
        ({0.1: 0.0, 0.2: 0.0, float("inf"): 3.0}, 0.2),
    ],
)
def test_a_quantile_of_few_observations(
    buckets: dict[float, float], expected: float | None
) -> None:
    found = quantile(buckets, 0.5)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_restart_and_a_standing_clock_have_no_rates() -> None:
    registry = CollectorRegistry()
    first = read(registry, 5.0)
    assert activity(first, read(registry, 5.0)) is None
    assert activity(first, read(registry, 6.0, START.replace("1000", "2000"))) is None
    assert activity(first, read(registry, 6.0)) is not None


def test_many_busy_deltas_are_cut_and_counted() -> None:
    registry = CollectorRegistry()
    before = read(registry, 0.0)
    rows = Counter("deltabert_rows", "", ("task", "strategy"), registry=registry)
    for number in range(20):
        rows.labels(f"task{number:02}", "head").inc(number + 1)
    found = activity(before, read(registry, 1.0))
    assert found is not None
    assert (len(found.busy), found.others) == (12, 8)
    assert found.busy[0].task == "task19"


def test_pairs_of_tasks_are_shares_of_the_batches() -> None:
    metrics = Metrics()
    metrics.on_tasks([1, 2, 3, 4], ["cola"])
    metrics.on_tasks([2], ["sst2"])
    metrics.on_tasks([2, 3], ["rte"])
    found = Reading.of(metrics.render().decode(), 0.0).shared()
    assert found == [("cola", "rte", 0.5), ("cola", "sst2", 0.25), ("rte", "sst2", 0.25)]
    assert Reading.of("g 4.0\n", 0.0).shared() == [], "an earlier server counts none"


def test_gauges_and_infos() -> None:
    text = 'g 4.0\nn NaN\ndeltabert_build_info{version="1",device="cpu"} 1.0\n'
    reading = Reading.of(text, 0.0)
    assert (reading.value("g"), reading.value("n"), reading.value("none")) == (4.0, None, None)
    assert reading.labels("deltabert_build_info") == {"version": "1", "device": "cpu"}
    assert reading.labels("none") == {}
    with pytest.raises(ServerError, match="doesn't understand the server's metrics"):
        Reading.of("<html>no metrics</html>", 0.0)
