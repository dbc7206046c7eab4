"""Prometheus metrics of one app, in a registry of its own.

Label values come from fixed sets only (route templates, statuses, names of served deltas), never
from a request, so that no client can grow the number of series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
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

from app.engine.cache import CacheCounts
from app.engine.engine import Int8Counts

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class Metrics:
    """Counts what happens; the `BatchObserver` of the batcher."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "deltabert_requests",
            "Requests answered, by route template and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "deltabert_request_seconds",
            "Time from the request's first byte to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        # To look up children by their labels takes longer than to count.
        self._counted: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._rows = Counter(
            "deltabert_rows", "Rows answered, by delta.", ("task", "strategy"), registry=registry
        )
        self._batch_rows = Histogram(
            "deltabert_batch_rows", "Rows in a batch.", buckets=_ROWS, registry=registry
        )
        self._batch_tokens = Histogram(
            "deltabert_batch_tokens", "Tokens in a batch.", buckets=_TOKENS, registry=registry
        )
        self._forward_seconds = Histogram(
            "deltabert_forward_seconds", "Time to run a batch.", buckets=_SECONDS, registry=registry
        )
        self._queue_seconds = Histogram(
            "deltabert_queue_seconds",
            "Time that a request's first row waited for a batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._dropped = Counter(
            "deltabert_dropped_requests",
            "Requests that ended without results: rejected, expired, cancelled or failed.",
            ("reason",),
            registry=registry,
        )
        for reason in ("rejected", "expired", "cancelled", "failed"):
            self._dropped.labels(reason)  # so that they are there before the first one
        self._queue_rows = Gauge("deltabert_queue_rows", "Rows waiting.", registry=registry)
        self._queue_tokens = Gauge("deltabert_queue_tokens", "Tokens waiting.", registry=registry)
        self._slots = Gauge("deltabert_slots_used", "Deltas on the device.", registry=registry)
        self._deltas = Gauge("deltabert_deltas", "Deltas served.", registry=registry)
        self._build = Info("deltabert_build", "What is running.", registry=registry)
        ProcessCollector(registry=registry)

    def describe(self, build: dict[str, str], num_deltas: int) -> None:
        """Set what stays the same while the server runs."""
        self._build.info(build)
        self._deltas.set(num_deltas)

    def watch_queue(self, num_rows: Callable[[], int], num_tokens: Callable[[], int]) -> None:
        """Show the depth of the queue, read when the metrics are."""
        self._queue_rows.set_function(num_rows)
        self._queue_tokens.set_function(num_tokens)

    def watch_slots(self, num_used: Callable[[], int], counts: CacheCounts) -> None:
        """Show who is in the bank and who came and went, read when the metrics are."""
        self._slots.set_function(num_used)
        self.registry.register(_SlotCollector(counts))

    def watch_int8(self, counts: Int8Counts) -> None:
        """Show what int8 computes, and what of it twice, read when the metrics are."""
        self.registry.register(_Int8Collector(counts))

    def on_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        method = method if method in _METHODS else "OTHER"
        counted = self._counted.get((method, route, status))
        if counted is None:
            counter = self._requests.labels(method, route, str(status))
            counted = counter, self._request_seconds.labels(route)
            self._counted[method, route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)

    def on_rows(self, task: str, strategy: str, num_rows: int) -> None:
        """Rows of a served delta were answered."""
        self._rows.labels(task, strategy).inc(num_rows)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """A batch was run."""
        self._batch_rows.observe(num_rows)
        self._batch_tokens.observe(num_tokens)
        self._forward_seconds.observe(seconds)

    def on_answer(self, queue_s: float) -> None:
        """A request got its results."""
        self._queue_seconds.observe(queue_s)

    def on_drop(self, reason: str) -> None:
        """A request ended without results."""
        self._dropped.labels(reason).inc()

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _SlotCollector(Collector):
    """Counters that `app.engine.cache` keeps: the hit rate is hits over all lookups."""

    def __init__(self, counts: CacheCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample a count."""
        counts = self._counts
        lookups: Mapping[str, int] = {
            "hit": counts.hits,
            "prefetched": counts.prefetched,
            "waited": counts.waited,
        }
        looked_up = CounterMetricFamily(
            "deltabert_slot_lookups",
            "Deltas that batches needed: in the bank, loaded ahead, or waited for.",
            labels=("outcome",),
        )
        for outcome, count in lookups.items():
            looked_up.add_metric((outcome,), count)
        yield looked_up
        loads = CounterMetricFamily(
            "deltabert_delta_loads", "Files that batches needed, by outcome.", labels=("outcome",)
        )
        loads.add_metric(("ok",), counts.prefetched + counts.waited - counts.failed)
        loads.add_metric(("failed",), counts.failed)
        yield loads
        yield CounterMetricFamily(
            "deltabert_slot_evictions", "Deltas that gave way to others.", value=counts.evicted
        )


class _Int8Collector(Collector):
    """Counters that `app.engine.engine` keeps: close calls over rows is the share that is run twice."""

    def __init__(self, counts: Int8Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One sample for each delta that has had a row."""
        for name, help_text, counts in (
            ("deltabert_int8_rows", "Rows that int8 computed, by delta.", self._counts.rows),
            (
                "deltabert_close_calls",
                "Rows of those that were computed once more without it, by delta.",
                self._counts.low_margin,
            ),
        ):
            family = CounterMetricFamily(name, help_text, labels=("task", "strategy"))
            for key, count in dict(counts).items():  # a copy: the engine's thread goes on counting
                family.add_metric(key, count)
            yield family
