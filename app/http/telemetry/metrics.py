"""Counts and measures for Prometheus, in a registry that belongs to one app.

Label values come from fixed sets only (route templates, statuses, codes of errors, names of served
deltas), never from a request, so no client can grow the number of series. Deltas may be many:
`app.http.telemetry.top_deltas` bounds their series. Tested by tests/http/test_metrics.py and
tests/http/test_health.py.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import combinations, islice
from threading import Lock
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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.batching.batcher import Batcher
from app.engine.engine import Engine
from app.errors import CODES, OTHER_CODE
from app.http.readiness import Readiness
from app.http.telemetry.top_deltas import OTHER, DeltaKey, DeltaSeries
from app.pipeline import STAGES
from deltas import Record

CONTENT_TYPE = CONTENT_TYPE_LATEST

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
_PARTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_MAX_KEYS = 1000  # names; a file of keys can be edited for years
_SHARED_BATCHES = 256  # that are remembered
_MAX_SHARING_TASKS = 32  # of one batch: pairs grow with the square of a fan-out
_MAX_PAIRS = 50
_OF_A_DELTA = ("task", "strategy")
_DELTA_METRICS = {
    "deltabert_rows": "Rows answered, by delta.",
    "deltabert_tokens": "Tokens of the rows answered, by delta.",
    "deltabert_int8_rows": "Rows that int8 computed, by delta.",
    "deltabert_close_calls": "Rows recomputed without int8 because of a low margin, by delta.",
}


class Metrics:
    """The metrics of an app; the `BatchObserver` of its batcher.

    Args:
        max_deltas: most deltas with series of their own.
    """

    def __init__(self, max_deltas: int = 100) -> None:
        registry = self._registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self._requests = counter(
            "deltabert_requests",
            "Requests answered, by route template and status.",
            ("method", "route", "status"),
        )
        # Finding the children by their labels takes longer than counting.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._errors = counter(
            "deltabert_errors", "Requests answered by an error, by the error's code.", ("code",)
        )
        self._dropped = counter(
            "deltabert_dropped_requests",
            "Requests that ended without results: rejected, expired, cancelled or failed.",
            ("reason",),
        )
        for code in CODES:  # exports a 0 before the first one
            self._errors.labels(code)
        for reason in ("rejected", "expired", "cancelled", "failed"):
            self._dropped.labels(reason)
        self._key_rows = counter("deltabert_key_rows", "Rows answered, by API key.", ("key",))
        self._keys: set[str] = set()
        self._add_histograms()
        self._queue_rows = gauge("deltabert_queue_rows", "Rows waiting.")
        self._queue_tokens = gauge("deltabert_queue_tokens", "Tokens waiting.")
        self._queue_oldest = gauge(
            "deltabert_queue_oldest_seconds", "Time that the oldest waiting row has waited."
        )
        self._slots_used = gauge("deltabert_slots_used", "Deltas on the device.")
        self._slots = gauge("deltabert_slots", "Deltas that the device may hold at a time.")
        self._shadow_rows = counter(
            "deltabert_shadow_rows",
            "Rows that a shadow version decided the same or differently, or did not see.",
            ("task", "strategy", "result"),
        )
        self._deltas = gauge("deltabert_deltas", "Deltas served.")
        self._rejected = gauge("deltabert_rejected_files", "Files of deltas that are not served.")
        self._ready = gauge(
            "deltabert_ready",
            "1 if the last check of readiness succeeded; NaN if it is long ago.",
        )
        self._stale_files = gauge(
            "deltabert_stale_files",
            "1 if the newest content of a file can't be used, and the previous one is used.",
            ("file",),
        )
        for file in ("keys", "certificate", "traffic"):  # exports a 0 without such a file
            self._stale_files.labels(file)
        self._failing = gauge(
            "deltabert_failing_seconds",
            "Time for which all batches have failed; 0 after a success.",
        )
        self._build = Info("deltabert_build", "Version and engine.", registry=registry)
        self._max_deltas = max_deltas
        self._answered: dict[DeltaKey, tuple[int, int]] = {}  # rows and tokens
        self._shadowed: set[DeltaKey] = set()
        self._shared = SharedBatches(registry)

    def _add_histograms(self) -> None:
        ProcessCollector(registry=self._registry)
        histogram = partial(Histogram, registry=self._registry)
        self._request_seconds = histogram(
            "deltabert_request_seconds",
            "Time from the first byte of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
        )
        stages = histogram(
            "deltabert_stage_seconds",
            "Time of a prediction in a stage; compute has a sample for each of its batches.",
            ("stage",),
            buckets=_STAGE_SECONDS,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._batch_rows = histogram("deltabert_batch_rows", "Rows in a batch.", buckets=_ROWS)
        self._batch_tokens = histogram(
            "deltabert_batch_tokens", "Tokens in a batch.", buckets=_TOKENS
        )
        self._batch_fill = histogram(
            "deltabert_batch_fill_ratio",
            "Tokens in a batch, as a part of the most that it may have.",
            buckets=_PARTS,
        )
        self._forward_seconds = histogram(
            "deltabert_forward_seconds", "Time to run a batch.", buckets=_SECONDS
        )
        self._queue_seconds = histogram(
            "deltabert_queue_seconds",
            "Time that the first row of a request waited for a batch.",
            buckets=_SECONDS,
        )

    def watch(
        self,
        engine: Engine,
        batcher: Batcher[Any, Any],
        readiness: Readiness,
        build: Mapping[str, object],
    ) -> None:
        """Export the numbers that the parts of the server keep, read when the metrics are.

        Args:
            engine: engine that serves.
            batcher: its batcher.
            readiness: its check of readiness.
            build: facts that stay the same while the server runs.
        """
        self._build.info({name: str(value) for name, value in build.items()})
        self._deltas.set_function(lambda: len(engine.store.records))
        self._rejected.set_function(lambda: len(engine.store.all_rejected))
        self._slots_used.set_function(lambda: engine.cache.num_used)
        self._slots.set_function(lambda: engine.cache.max_slots or len(engine.store.records))
        self._queue_rows.set_function(lambda: batcher.queue.num_rows)
        self._queue_tokens.set_function(lambda: batcher.queue.num_tokens)
        self._queue_oldest.set_function(lambda: batcher.oldest_s)
        self._ready.set_function(lambda: readiness.last_outcome)
        self._failing.set_function(lambda: batcher.failing_s)
        self._registry.register(_EngineCollector(engine))
        self._registry.register(_DeltaCollector(engine, self._answered, self._max_deltas))

    def watch_file(self, file: str, is_stale: Callable[[], bool]) -> None:
        """Export whether a file that is followed (`keys`, `certificate`, `traffic`) is stale."""
        self._stale_files.labels(file).set_function(is_stale)

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

    def on_error(self, code: str) -> None:
        """Note a request that was answered by an error of `app.errors`."""
        self._errors.labels(code if code in CODES else OTHER_CODE).inc()

    def on_stage(self, stage: str, seconds: float) -> None:
        """Note that a prediction has passed one of the pipeline's stages."""
        self._stages[stage].observe(seconds)

    def on_shadow(self, task: str, strategy: str, result: str, num_rows: int) -> None:
        """Note rows of a delta with a shadow version: same, different or skipped.

        Deltas that come after the first ones, as many as have series of their own, share a series.
        """
        key = task, strategy
        if key not in self._shadowed and len(self._shadowed) >= self._max_deltas:
            key = OTHER
        self._shadowed.add(key)
        self._shadow_rows.labels(*key, result).inc(num_rows)

    def on_rows(self, task: str, strategy: str, num_rows: int, num_tokens: int) -> None:
        """Note the answered rows of a served delta, and their tokens."""
        key = task, strategy
        rows, tokens = self._answered.get(key, (0, 0))
        self._answered[key] = rows + num_rows, tokens + num_tokens

    def on_tasks(self, batches: Iterable[int], tasks: Iterable[str]) -> None:
        """Note the tasks of an answer, and the numbers of the batches that it ran in."""
        self._shared.note(batches, tasks)

    def on_key_rows(self, key: str, num_rows: int) -> None:
        """Note the answered rows of a key; names that come after the first 1,000 are one."""
        if key not in self._keys and len(self._keys) < _MAX_KEYS:
            self._keys.add(key)
        self._key_rows.labels(key if key in self._keys else "other").inc(num_rows)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        """Note a batch that ran."""
        self._batch_rows.observe(num_rows)
        self._batch_tokens.observe(num_tokens)
        self._batch_fill.observe(fill)
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
    """Exports the counts of the cache, which the engine keeps itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        cache = self._engine.cache.counts
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


class SharedBatches(Collector):
    """Counts which tasks had rows in the same batch, over the last batches.

    Only pairs that occur are exported, the most frequent ones first, so the number of series is
    bounded. Forgotten batches lower the counts, so they are a gauge.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tasks: OrderedDict[int, set[str]] = OrderedDict()  # by the number of the batch
        self._lock = Lock()  # metrics are written in a thread
        registry.register(self)

    def note(self, numbers: Iterable[int], tasks: Iterable[str]) -> None:
        """Note that batches had rows of these tasks."""
        names = set(tasks)
        with self._lock:
            for number in numbers:
                self._tasks.setdefault(number, set()).update(names)
            while len(self._tasks) > _SHARED_BATCHES:
                self._tasks.popitem(last=False)

    def pairs(self) -> list[tuple[tuple[str, str], int]]:
        """Return the pairs of tasks with the number of batches that had both, most first."""
        with self._lock:
            batches = [sorted(tasks)[:_MAX_SHARING_TASKS] for tasks in self._tasks.values()]
        counts = Counts(pair for tasks in batches for pair in combinations(tasks, 2))
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_PAIRS]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Export a sample for each pair, and the number of batches that were looked at."""
        text = "Of the last batches, those with rows of both tasks; the most frequent pairs."
        pairs = GaugeMetricFamily("deltabert_shared_batches", text, labels=("task", "other"))
        for names, count in self.pairs():
            pairs.add_metric(names, count)
        yield pairs
        text = "Batches that pairs of tasks are counted in."
        yield GaugeMetricFamily("deltabert_shared_batches_seen", text, len(self._tasks))


class _DeltaCollector(Collector):
    """Exports what is counted for each delta, for a limited number of them.

    Args:
        engine: engine that serves; keeps the counts of int8.
        answered: rows and tokens of each delta, which go on growing.
        max_deltas: most deltas with series of their own.
    """

    def __init__(
        self, engine: Engine, answered: dict[DeltaKey, tuple[int, int]], max_deltas: int
    ) -> None:
        self._engine = engine
        self._answered = answered
        self._max_deltas = max_deltas
        self._series = DeltaSeries(max_deltas)
        self._records: list[Record] = []
        self._default: dict[DeltaKey, Record] = {}  # the default version of each delta
        self._lock = Lock()  # several threads may write the metrics

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            yield from [*self._families(), self._versions()]

    def _families(self) -> list[CounterMetricFamily]:
        int8, answered = self._engine.int8_counts, self._answered.copy()
        rows = {key: counts[0] for key, counts in answered.items()}
        counted = {
            "deltabert_rows": rows,
            "deltabert_tokens": {key: counts[1] for key, counts in answered.items()},
            # Copies, because the engine's threads go on counting.
            "deltabert_int8_rows": dict(int8.rows),
            "deltabert_close_calls": dict(int8.low_margin),
        }
        return [
            _family(name, _DELTA_METRICS[name], _OF_A_DELTA, series)
            for name, series in self._series.read(counted, rows).items()
        ]

    def _versions(self) -> InfoMetricFamily:
        """Return the versions of the deltas with series, then of others up to the same number."""
        family = InfoMetricFamily("deltabert_delta", "Version of a delta.", labels=_OF_A_DELTA)
        records = self._engine.store.records
        if records is not self._records:  # searching thousands each time would take too long
            self._records = records
            self._default = {each.manifest.key: each for each in records if each.is_default}
        keys = [key for key in self._series.top.shown if key in self._default]
        others = (key for key in self._default if key not in self._series.top.shown)
        for key in [*keys, *islice(others, self._max_deltas - len(keys))]:
            family.add_metric(key, {"version": self._default[key].version})
        return family


def _family(
    name: str, help_text: str, labels: tuple[str, ...], counts: Mapping[Any, float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for key, count in counts.items():
        family.add_metric(key, count)
    return family
