"""Counts and measures for Prometheus, in a registry that belongs to one app.

Label values come from fixed sets only (route templates, statuses, names of served deltas), never
from a request, so no client can grow the number of series. Tested by tests/http/test_health.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from app.batching.batcher import Batcher
from app.engine.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
_MAX_KEYS = 1000  # names; a file of keys can be edited for years


class Metrics:
    """The metrics of an app; the `BatchObserver` of its batcher."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._requests = counter(
            "deltabert_requests",
            "Requests answered, by route template and status.",
            ("method", "route", "status"),
        )
        self._request_seconds = histogram(
            "deltabert_request_seconds",
            "Time from the first byte of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
        )
        # Finding the children by their labels takes longer than counting.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._rows = counter("deltabert_rows", "Rows answered, by delta.", ("task", "strategy"))
        self._batch_rows = histogram("deltabert_batch_rows", "Rows in a batch.", buckets=_ROWS)
        self._batch_tokens = histogram(
            "deltabert_batch_tokens", "Tokens in a batch.", buckets=_TOKENS
        )
        self._forward_seconds = histogram(
            "deltabert_forward_seconds", "Time to run a batch.", buckets=_SECONDS
        )
        self._queue_seconds = histogram(
            "deltabert_queue_seconds",
            "Time that the first row of a request waited for a batch.",
            buckets=_SECONDS,
        )
        self._dropped = counter(
            "deltabert_dropped_requests",
            "Requests that ended without results: rejected, expired, cancelled or failed.",
            ("reason",),
        )
        for reason in ("rejected", "expired", "cancelled", "failed"):
            self._dropped.labels(reason)  # exports a 0 before the first one
        self._refused = counter(
            "deltabert_key_refusals",
            "Requests refused for their key, by the code of the error.",
            ("reason",),
        )
        self._key_rows = counter("deltabert_key_rows", "Rows answered, by API key.", ("key",))
        self._keys: set[str] = set()
        self._queue_rows = gauge("deltabert_queue_rows", "Rows waiting.")
        self._queue_tokens = gauge("deltabert_queue_tokens", "Tokens waiting.")
        self._slots = gauge("deltabert_slots_used", "Deltas on the device.")
        self._deltas = gauge("deltabert_deltas", "Deltas served.")
        self._build = Info("deltabert_build", "Version and engine.", registry=registry)
        ProcessCollector(registry=registry)

    def watch(
        self, engine: Engine, batcher: Batcher[Any, Any], build: Mapping[str, object]
    ) -> None:
        """Export the numbers that engine and batcher keep, read when the metrics are.

        Args:
            engine: engine that serves.
            batcher: its batcher.
            build: facts that stay the same while the server runs.
        """
        self._build.info({name: str(value) for name, value in build.items()})
        self._deltas.set(len(engine.store.records))
        self._slots.set_function(lambda: engine.cache.num_used)
        self._queue_rows.set_function(lambda: batcher.queue.num_rows)
        self._queue_tokens.set_function(lambda: batcher.queue.num_tokens)
        self._registry.register(_EngineCollector(engine))

    def on_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Note a request that was answered."""
        method = method if method in _METHODS else "OTHER"
        children = self._children.get((method, route, status))
        if children is None:
            counter = self._requests.labels(method, route, str(status))
            children = counter, self._request_seconds.labels(route)
            self._children[method, route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def on_rows(self, task: str, strategy: str, num_rows: int) -> None:
        """Note the answered rows of a served delta."""
        self._rows.labels(task, strategy).inc(num_rows)

    def on_refusal(self, reason: str) -> None:
        """Note a request that was refused for its key: unauthorized, forbidden, rate_limited."""
        self._refused.labels(reason).inc()

    def on_key_rows(self, key: str, num_rows: int) -> None:
        """Note the answered rows of a key; names that come after the first 1,000 are one."""
        if key not in self._keys and len(self._keys) < _MAX_KEYS:
            self._keys.add(key)
        self._key_rows.labels(key if key in self._keys else "other").inc(num_rows)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """Note a batch that ran."""
        self._batch_rows.observe(num_rows)
        self._batch_tokens.observe(num_tokens)
        self._forward_seconds.observe(seconds)

    def on_answer(self, queue_s: float) -> None:
        """Note a request that got its results."""
        self._queue_seconds.observe(queue_s)

    def on_drop(self, reason: str) -> None:
        """Note a request that ended without results."""
        self._dropped.labels(reason).inc()

    def render(self) -> bytes:
        """Write all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Exports the counts of cache and int8, which the engine keeps itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        cache, int8 = self._engine.cache.counts, self._engine.int8_counts
        yield _family(
            "deltabert_slot_lookups",
            "Deltas that batches needed: in the bank, loaded ahead, or waited for.",
            ("outcome",),
            {("hit",): cache.hits, ("prefetched",): cache.prefetched, ("waited",): cache.waited},
        )
        loaded = cache.prefetched + cache.waited - cache.failed
        yield _family(
            "deltabert_delta_loads",
            "Files that batches needed, by outcome.",
            ("outcome",),
            {("ok",): loaded, ("failed",): cache.failed},
        )
        yield _family("deltabert_slot_evictions", "Deltas evicted.", (), {(): cache.evicted})
        labels = ("task", "strategy")
        help_text = "Rows that int8 computed, by delta."
        yield _family("deltabert_int8_rows", help_text, labels, int8.rows)
        help_text = "Rows recomputed without int8 because of a low margin, by delta."
        yield _family("deltabert_close_calls", help_text, labels, int8.low_margin)


def _family(
    name: str, help_text: str, labels: tuple[str, ...], counts: Mapping[Any, float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for key, count in dict(counts).items():  # a copy: the engine's threads go on counting
        family.add_metric(key, count)
    return family
