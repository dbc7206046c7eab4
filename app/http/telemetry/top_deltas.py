"""Bounds the series of metrics that have a label for each delta.

A series for each of thousands of deltas would make every answer of `/metrics` megabytes. So the
busiest deltas have series of their own, and all others share one. A delta's new counts go to its
own series while it has one, and to the shared series while it has none, so no series ever goes
down (decision 0131). Read `app.http.telemetry.metrics` next.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Collection, Mapping

DeltaKey = tuple[str, str]  # task and strategy

OTHER: DeltaKey = ("other", "")  # of the shared series; no strategy has an empty name
_ROUND_S = 600.0  # a series that comes and goes costs Prometheus more than one that stays
_FACTOR = 2  # a delta takes another's place if it has more than this many times its rows


class TopDeltas:
    """Chooses the deltas that have series of their own.

    A free place goes to any delta that has counted something. Once all are taken, a delta gets the
    place of another one if it is much busier. Rows count half as much with each round.

    Args:
        limit: most deltas with series of their own.
        clock: source of the time that ends a round.

    Attributes:
        shown: keys of the chosen deltas.
        left: keys of the deltas that lost their places at the end of the last round.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.shown: dict[DeltaKey, None] = {}
        self.left: dict[DeltaKey, None] = {}
        self._limit = limit
        self._clock = clock
        self._round_ends_at = clock() + _ROUND_S
        self._traffic: dict[DeltaKey, float] = {}
        self._counted: dict[DeltaKey, int] = {}

    def fill(self, counts: Mapping[DeltaKey, int]) -> None:
        """Give the free places to deltas that have counts, the largest counts first."""
        free = self._limit - len(self.shown)
        if free > 0:
            waiting = [key for key in counts if key not in self.shown]
            chosen = heapq.nlargest(free, waiting, key=counts.__getitem__)
            self.shown.update(dict.fromkeys(chosen))

    def choose_again(self, rows: Mapping[DeltaKey, int]) -> None:
        """At the end of a round, give places of idle deltas to busier ones.

        Args:
            rows: rows of each delta since the start.
        """
        now = self._clock()
        if now < self._round_ends_at:
            return
        self._round_ends_at = now + _ROUND_S
        self.left = {}
        traffic = {
            key: self._traffic.get(key, 0.0) / 2 + count - self._counted.get(key, 0)
            for key, count in rows.items()
        }
        self._traffic, self._counted = traffic, dict(rows)
        busiest = heapq.nlargest(self._limit, traffic, key=traffic.__getitem__)
        coming = [key for key in busiest if key not in self.shown]
        going = sorted(self.shown.keys() - set(busiest), key=lambda key: traffic.get(key, 0.0))
        for new, old in zip(coming, going, strict=False):
            if traffic[new] <= _FACTOR * traffic.get(old, 0.0):
                break
            del self.shown[old]
            self.shown[new], self.left[old] = None, None


class DeltaCounter:
    """Divides the counts of one metric between the deltas' own series and the shared one."""

    def __init__(self) -> None:
        self._counted: dict[DeltaKey, float] = {}
        self._own: dict[DeltaKey, float] = {}
        self._other = 0.0

    def update(self, counts: Mapping[DeltaKey, float], shown: Collection[DeltaKey]) -> None:
        """Assign what was counted since the last call.

        Args:
            counts: counts of each delta since the start; they never fall.
            shown: deltas that have series of their own.
        """
        for key, count in counts.items():
            new = count - self._counted.get(key, 0.0)
            if new:
                self._counted[key] = count
                if key in shown:
                    self._own[key] = self._own.get(key, 0.0) + new
                else:
                    self._other += new

    def series(self, shown: Collection[DeltaKey]) -> dict[DeltaKey, float]:
        """Return the value of each series; a metric that has counted nothing has none."""
        values = {key: self._own.get(key, 0.0) for key in shown if key in self._counted}
        return values | {OTHER: self._other} if self._counted else {}


class DeltaSeries:
    """The series of several metrics, of which each delta with a place has one.

    Args:
        limit: most deltas with series of their own.
        clock: source of the time that ends a round.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.top = TopDeltas(limit, clock)
        self._counters: dict[str, DeltaCounter] = {}

    def read(
        self, counts: Mapping[str, Mapping[DeltaKey, int]], traffic: Mapping[DeltaKey, int]
    ) -> dict[str, dict[DeltaKey, float]]:
        """Return the series of each metric.

        Args:
            counts: counts of each delta since the start, by metric.
            traffic: rows of each delta since the start, which decide about places.
        """
        for of_metric in counts.values():
            self.top.fill(of_metric)
        for metric, of_metric in counts.items():
            self._counters.setdefault(metric, DeltaCounter()).update(of_metric, self.top.shown)
        self.top.choose_again(traffic)
        # A series ends a round after its delta has lost its place. Until then each of several
        # readers sees what was counted between its last look and the loss.
        shown = self.top.shown | self.top.left
        return {metric: self._counters[metric].series(shown) for metric in counts}
