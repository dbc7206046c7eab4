"""Turns two reads of `GET /metrics` into what the server did between them.

Counters only grow, so their differences over the time between are rates. Quantiles are estimated
from the buckets of a histogram, as Prometheus does. Tested by
tests/unit/frontend/reports/test_live.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from frontend.errors import ServerError

Labels = frozenset[tuple[str, str]]
_PREDICT = "/predict"  # the routes that predict begin so
_OTHER = "other"  # the server's series for all deltas without one of their own
_MAX_BUSY = 12


@dataclass(frozen=True)
class Reading:
    """All samples of one read, by name and labels."""

    at: float  # time of the read, on a monotonic clock
    samples: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, text: str, at: float) -> Reading:
        """Parse Prometheus' text format.

        Raises:
            ServerError: it is no such text.
        """
        samples: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found = samples.setdefault(sample.name, {})
                    found[frozenset(sample.labels.items())] = sample.value
        except (ValueError, KeyError, IndexError) as error:
            raise ServerError(
                "This page doesn't understand the server's metrics. Check that the page and the "
                "server have the same version."
            ) from error
        return cls(at, samples)

    def value(self, name: str) -> float | None:
        """Return a sample without labels; None if there is none or it is no number."""
        found = self.samples.get(name, {}).get(frozenset())
        return None if found is None or math.isnan(found) else found

    def shared(self) -> list[tuple[str, str, float]]:
        """Return the pairs of tasks that met in a batch, with the share of batches, most first."""
        seen = self.value("deltabert_shared_batches_seen") or 0.0
        pairs = self.samples.get("deltabert_shared_batches", {})
        found = [
            (dict(labels)["task"], dict(labels)["other"], count / seen)
            for labels, count in pairs.items()
            if seen
        ]
        return sorted(found, key=lambda pair: (-pair[2], pair[:2]))

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of an info, which has one sample; empty if there is none."""
        return dict(next(iter(self.samples.get(name, {})), frozenset()))


@dataclass(frozen=True)
class BusyDelta:
    """A delta that answered rows between two reads."""

    task: str
    strategy: str
    rows_per_s: float
    tokens_per_s: float


@dataclass(frozen=True)
class Activity:
    """The work of a server between two reads; None where nothing happened to be measured."""

    seconds: float
    rows_per_s: float
    tokens_per_s: float
    requests_per_s: float
    errors_per_s: float
    p50_s: float | None
    p99_s: float | None
    batches_per_s: float
    batch_rows: float | None  # mean number of rows in a batch
    batch_fill: float | None  # mean part of the most tokens that a batch may have
    busy: tuple[BusyDelta, ...]  # the busiest first
    others: int  # number of further deltas that answered rows


def activity(before: Reading, after: Reading) -> Activity | None:
    """Return what happened between two reads; None if the server restarted or time stood still."""
    seconds = after.at - before.at
    start = "process_start_time_seconds"
    if seconds <= 0 or before.value(start) != after.value(start):
        return None
    grown = _Growth(before, after)
    rows, tokens = grown.by_delta("deltabert_rows_total"), grown.by_delta("deltabert_tokens_total")
    busy = sorted((key for key in rows if rows[key] > 0), key=lambda key: (-rows[key], key))
    batches = grown.total("deltabert_batch_rows_count")
    latencies = grown.buckets("deltabert_request_seconds_bucket", "route", _PREDICT)
    return Activity(
        seconds=seconds,
        rows_per_s=sum(rows.values()) / seconds,
        tokens_per_s=sum(tokens.values()) / seconds,
        requests_per_s=grown.total("deltabert_requests_total", "route", _PREDICT) / seconds,
        errors_per_s=grown.total("deltabert_errors_total") / seconds,
        p50_s=quantile(latencies, 0.5),
        p99_s=quantile(latencies, 0.99),
        batches_per_s=batches / seconds,
        batch_rows=grown.total("deltabert_batch_rows_sum") / batches if batches else None,
        batch_fill=grown.total("deltabert_batch_fill_ratio_sum") / batches if batches else None,
        busy=tuple(
            BusyDelta(*key, rows[key] / seconds, tokens.get(key, 0.0) / seconds)
            for key in busy[:_MAX_BUSY]
        ),
        others=max(0, len(busy) - _MAX_BUSY),
    )


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """Estimate a quantile from cumulative counts by upper bound; None without observations.

    Within a bucket the observations are taken to be spread evenly. In the last, open bucket the
    answer is its lower bound.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, below, lower = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted and buckets[bound] > below:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (wanted - below) / (buckets[bound] - below)
        below, lower = buckets[bound], bound if not math.isinf(bound) else lower
    return lower


class _Growth:
    """Tells how much counters grew from one read to the next; a new series began at 0."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before = before
        self._after = after

    def total(self, name: str, label: str = "", prefix: str = "") -> float:
        """Return the growth of all series, or of those whose label begins with a prefix."""
        return sum(value for _, value in self._of(name, label, prefix))

    def by_delta(self, name: str) -> dict[tuple[str, str], float]:
        """Return the growth by task and strategy."""
        found: dict[tuple[str, str], float] = {}
        for labels, value in self._of(name, "", ""):
            given = dict(labels)
            found[given.get("task", _OTHER), given.get("strategy", "")] = value
        return found

    def buckets(self, name: str, label: str, prefix: str) -> dict[float, float]:
        """Return the growth of a histogram's cumulative counts, by upper bound."""
        found: dict[float, float] = {}
        for labels, value in self._of(name, label, prefix):
            bound = float(dict(labels)["le"])
            found[bound] = found.get(bound, 0.0) + value
        return found

    def _of(self, name: str, label: str, prefix: str) -> Iterator[tuple[Labels, float]]:
        old = self._before.samples.get(name, {})
        for labels, value in self._after.samples.get(name, {}).items():
            if not label or dict(labels).get(label, "").startswith(prefix):
                yield labels, max(0.0, value - old.get(labels, 0.0))
