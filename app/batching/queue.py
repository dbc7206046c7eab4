"""Holds the rows that wait for the engine and divides the batches fairly between tasks.

The requests of one key (a task's name) form a lane. Lanes take turns by deficit round robin (DRR),
in the variant that lets a lane overdraw its deficit counter (surplus round robin):

    lane        deficit   requests, as rows that wait
    sst2             +7   [a a a a a a] [b]     gives rows while its deficit is positive
    qnli            -12   [c c]                 has overdrawn; sits out rounds until it is positive
    fan-outs        +32   [d d d] [e]

A row costs its tokens, and a round pays `QUANTUM_TOKENS` to each lane. So a new lane waits for one
round of the others, whatever they have waiting, and tasks with long rows get no more tokens than
tasks with short ones. Inside a lane, requests take turns row by row, so a request of one row waits
for at most one row of each earlier request. A step is O(1).

The longer a batch runs, the longer the rows of the next one wait. Therefore a batch is capped at
fewer tokens while only one lane has rows left and other lanes had rows in one of the last
`RECENT_BATCHES` batches: their next rows will come while this batch runs. The lane still gets at
least half as much as any other lane of the batch, so long rows of others cannot starve it.

The lane `BACKGROUND`, of work in bulk, waits until no other lane has rows, and its rows share no
batch with theirs. While others always have rows, one batch in `BACKGROUND_EVERY` is its own.

Everything here is called in the event loop. Read `app.batching.admission` next.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from app.errors import DeadlineExceededError

QUANTUM_TOKENS = 32  # tokens that a lane gets per round: about one row
BACKGROUND = object()  # key of the lane whose rows run when nothing else waits
BACKGROUND_EVERY = 16  # batches, of which the background gets one if others always wait
RECENT_BATCHES = 16  # batches for which a lane without rows is expected to come back
_SHARE_TOKENS = 8192  # tokens of all lanes over which a waiting lane's share of them is measured
_PRIOR_TOKENS = 64  # weight of the guess that no row of another lane overtakes a waiting lane
_MEMORY = 0.8  # weight of the earlier batches in a capped lane's share
_URGENT = object()  # key of the lane that precedes all others
_NO_TRAFFIC = (_URGENT, BACKGROUND)  # lanes that say nothing about the traffic of the others


class Row(Protocol):
    """A row, of which only the length is known here."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the row adds to a batch."""


R = TypeVar("R", bound=Row)
T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch and of the queue; `max_queue_s` is the longest wait for a batch."""

    max_batch_rows: int
    max_batch_tokens: int
    max_queue_rows: int
    max_queue_tokens: int
    max_queue_s: float = math.inf


class BatchObserver(Protocol):
    """Receives the events of the batcher; implemented by `app.http.telemetry.metrics.Metrics`."""

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        """Note a batch that ran; `fill` is its part of the tokens that it might have had."""

    def on_answer(self, queue_s: float) -> None:
        """Note a request that got its results."""

    def on_drop(self, reason: str) -> None:
        """Note a request that ended as rejected, expired, cancelled or failed."""


@dataclass(frozen=True)
class BatchRun:
    """A batch that ran; the times are on the batcher's clock."""

    number: int  # of the batches of this server
    num_rows: int
    num_tokens: int
    began_at: float
    ended_at: float


@dataclass(eq=False)
class QueuedRequest(Generic[R]):
    """The rows of one request."""

    rows: Sequence[R]  # at least one row
    deadline: float  # time at which the answer stops being useful, on the batcher's clock
    key: Hashable = None  # name of the lane that the rows wait in
    num_taken: int = 0  # number of rows, counted from the front, that have gone into batches
    waiting_tokens: int = field(init=False)  # tokens of the rows that have not

    def __post_init__(self) -> None:
        self.waiting_tokens = sum(row.num_tokens for row in self.rows)


@dataclass(eq=False)
class PendingRequest(QueuedRequest[R], Generic[R, T]):
    """A queued request with its results so far and the future that its caller awaits."""

    future: asyncio.Future[None] = field(kw_only=True)
    queued_at: float = field(kw_only=True)
    results: dict[int, T] = field(default_factory=dict)
    started_at: float | None = None
    runs: list[BatchRun] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """End the request with an error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)

    def expire(self) -> None:
        """End the request because its deadline has passed."""
        self.fail(DeadlineExceededError(self.deadline - self.queued_at))

    def finish(self) -> None:
        """End the request if all its results are there."""
        if not self.future.done() and len(self.results) == len(self.rows):
            self.future.set_result(None)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The results of a request."""

    results: list[T]  # one result a row, in the order of the rows
    queue_s: float  # seconds from submission to the start of the first batch with one of the rows
    compute_s: float  # total seconds of the batches that had rows of the request
    runs: Sequence[BatchRun] = ()  # these batches


Q = TypeVar("Q", bound=QueuedRequest[Any])


@dataclass
class _Lane(Generic[Q]):
    """The requests of one key, in the order of their turns."""

    deficit: int = QUANTUM_TOKENS  # tokens that the lane may still give in this round
    num_rows: int = 0
    num_tokens: int = 0
    own_tokens: float = 0.0  # tokens of the lane in capped batches; older ones weigh less
    batch_tokens: float = 0.0  # tokens of all lanes in the same batches, weighed alike
    given: float = 0.0  # tokens of the lane, out of those of all lanes since `measured_from`
    measured_from: float = 0.0  # value of the queue's `_num_taken`
    requests: OrderedDict[Q, None] = field(default_factory=OrderedDict)


@dataclass
class Batch(Generic[Q]):
    """Rows that run together.

    Attributes:
        rows: each row as its request and position there.
        lane_tokens: tokens of each lane that counts as traffic.
        expired: requests that were dropped because their deadline had passed.
    """

    rows: list[tuple[Q, int]] = field(default_factory=list)
    num_tokens: int = 0
    lane_tokens: dict[Hashable, int] = field(default_factory=dict)
    expired: list[Q] = field(default_factory=list)
    largest: int = 0  # of `lane_tokens`

    def add(self, request: Q, key: Hashable, num_tokens: int) -> None:
        """Take the request's next row."""
        self.rows.append((request, request.num_taken))
        self.num_tokens += num_tokens
        if key not in _NO_TRAFFIC:
            self.lane_tokens[key] = self.lane_tokens.get(key, 0) + num_tokens
            self.largest = max(self.largest, self.lane_tokens[key])


class RowQueue(Generic[Q]):
    """The lanes and the rows that are reserved for them.

    Args:
        small_batch_tokens: function from the tokens of a full batch to the tokens of a capped one.

    Attributes:
        num_rows: number of rows that wait, without the reserved ones.
        num_tokens: tokens of these rows.
        num_reserved: number of rows that will be added.
    """

    def __init__(self, small_batch_tokens: Callable[[int], int]) -> None:
        self.num_rows = 0
        self.num_tokens = 0
        self.num_reserved = 0
        self._reserved: Counter[Hashable] = Counter()
        self._lanes: OrderedDict[Hashable, _Lane[Q]] = OrderedDict()
        self._background: _Lane[Q] = _Lane()
        self._num_since_background = 0  # batches
        self._lane_of: dict[Q, Hashable] = {}
        self._small_batch_tokens = small_batch_tokens
        self._num_batches = 0
        self._recent: OrderedDict[Hashable, int] = OrderedDict()  # last batch with rows of a lane
        self._capped: _Lane[Q] | None = None  # lane that the last batch was capped for
        self._num_taken = 0  # tokens of all lanes that count as traffic, since the start

    def reserve(self, key: Hashable, num_rows: int) -> None:
        """Count rows that will be added, so that they are not refused when they are."""
        self._reserved[key] += num_rows
        self.num_reserved += num_rows

    def release(self, key: Hashable, num_rows: int) -> None:
        """Give up a reservation."""
        self._reserved[key] -= num_rows
        self.num_reserved -= num_rows
        if not self._reserved[key]:
            del self._reserved[key]

    def add(self, request: Q, *, urgent: bool = False) -> None:
        """Put a request at the end of its lane, or before all others if it is urgent."""
        key = _URGENT if urgent else request.key
        lane = self._lane_at(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(measured_from=self._num_taken)
            if urgent:
                self._lanes.move_to_end(key, last=False)
        lane.requests[request] = None
        self._lane_of[request] = key
        self._count(lane, len(request.rows), request.waiting_tokens)

    def remove(self, request: Q) -> None:
        """Take out the rows of a request that wait; does nothing if none do."""
        if request in self._lane_of:
            key = self._lane_of[request]
            num_rows = len(request.rows) - request.num_taken
            lane = self._lane_at(key)
            assert lane is not None  # it has this request
            self._count(lane, -num_rows, -request.waiting_tokens)
            self._end(request, key)

    def oldest(self) -> Q | None:
        """Return the request that has waited longest; safe to call from any thread."""
        # The list is made in one step of the interpreter, beside which nothing changes its source.
        waiting = list(self._lane_of)
        return waiting[0] if waiting else None

    def held_by(self, key: Hashable) -> tuple[int, int]:
        """Return a lane's number of waiting and reserved rows, and its waiting tokens."""
        lane = self._lane_at(key) or _Lane()
        return lane.num_rows + self._reserved[key], lane.num_tokens

    def count_keys(self, key: Hashable) -> int:
        """Count the keys with waiting or reserved rows, and `key` among them in any case."""
        return len({key, *self._reserved, *self._lanes})

    def tokens_before(self, key: Hashable) -> int:
        """Estimate how many tokens run before a row that would be added to a lane now.

        Each lane gives as much as the row's own lane holds, and one round more, or all it has. If
        the lane was capped in the last batch, its own tokens are scaled by its recent share of the
        batches, because later rows of other lanes will overtake them. So are the tokens of any
        lane that waits, if that is more.
        """
        lane = self._lanes.get(key)
        own_tokens = (lane.num_tokens if lane else 0) + QUANTUM_TOKENS
        if lane is not None and lane is self._capped:
            return round(own_tokens * lane.batch_tokens / lane.own_tokens)
        tokens = min(self.num_tokens, own_tokens * len(self._lanes))
        if lane is None:
            return tokens
        of_all = self._num_taken - lane.measured_from
        slowdown = (of_all + _PRIOR_TOKENS) / (lane.given + _PRIOR_TOKENS)
        return max(tokens, round(lane.num_tokens * slowdown))

    def take(self, max_rows: int, max_tokens: int, now: float) -> Batch[Q]:
        """Take the next batch out of the queue.

        Args:
            max_rows: most rows in the batch.
            max_tokens: most tokens in the batch; a longer row makes a batch by itself.
            now: current time; requests with a deadline up to it are dropped.
        """
        batch: Batch[Q] = Batch()
        self._begin_batch()
        if self._background.requests and (
            not self._lanes or self._num_since_background >= BACKGROUND_EVERY - 1
        ):
            self._take_background(batch, max_rows, max_tokens, now)
            if batch.rows:
                self._num_since_background = 0
                return batch
        self._num_since_background += 1
        while self._lanes and len(batch.rows) < max_rows:
            key, lane = next(iter(self._lanes.items()))
            if lane.deficit <= 0 and key is not _URGENT:
                lane.deficit += QUANTUM_TOKENS
                self._lanes.move_to_end(key)
                continue
            request = next(iter(lane.requests))
            if request.deadline <= now:
                self.remove(request)
                batch.expired.append(request)
                continue
            row_tokens = request.rows[request.num_taken].num_tokens
            num_tokens = batch.num_tokens + row_tokens
            if batch.rows and num_tokens > max_tokens:
                break  # the row stays first, so that a long row is not passed over forever
            if self._is_last_lane(key, batch) and num_tokens > self._small_batch_tokens(max_tokens):
                lane.own_tokens = _MEMORY * lane.own_tokens + batch.lane_tokens[key]
                lane.batch_tokens = _MEMORY * lane.batch_tokens + batch.num_tokens
                self._capped = lane
                break
            batch.add(request, key, row_tokens)
            self._advance(request, key, lane, row_tokens)
        if len(batch.lane_tokens) == 1 and len(self._lanes) == 1:  # no lane overtakes another
            (alone,) = self._lanes.values()
            alone.given, alone.measured_from = 0.0, self._num_taken
        return batch

    def _take_background(self, batch: Batch[Q], max_rows: int, max_tokens: int, now: float) -> None:
        lane = self._background
        while lane.requests and len(batch.rows) < max_rows:
            request = next(iter(lane.requests))
            if request.deadline <= now:
                self.remove(request)
                batch.expired.append(request)
                continue
            row_tokens = request.rows[request.num_taken].num_tokens
            if batch.rows and batch.num_tokens + row_tokens > max_tokens:
                break
            batch.add(request, BACKGROUND, row_tokens)
            self._advance(request, BACKGROUND, lane, row_tokens)

    def _begin_batch(self) -> None:
        self._capped = None
        self._num_batches += bool(self._lanes)
        oldest = self._num_batches - RECENT_BATCHES
        while self._recent and next(iter(self._recent.values())) < oldest:
            self._recent.popitem(last=False)

    def _is_last_lane(self, key: Hashable, batch: Batch[Q]) -> bool:
        """Tell if a lane has at least its half, and the other recent lanes are empty."""
        has_its_half = 2 * batch.lane_tokens.get(key, 0) >= batch.largest > 0
        return has_its_half and len(self._lanes) == 1 and len(self._recent) > 1

    def _advance(self, request: Q, key: Hashable, lane: _Lane[Q], num_tokens: int) -> None:
        request.num_taken += 1
        request.waiting_tokens -= num_tokens
        lane.deficit -= num_tokens
        self._count(lane, -1, -num_tokens)
        if key not in _NO_TRAFFIC:
            self._recent[key] = self._num_batches
            self._recent.move_to_end(key)
            self._measure_share(lane, num_tokens)
        if request.num_taken == len(request.rows):
            self._end(request, key)
        else:
            lane.requests.move_to_end(request)

    def _measure_share(self, lane: _Lane[Q], num_tokens: int) -> None:
        self._num_taken += num_tokens
        lane.given += num_tokens
        of_all = self._num_taken - lane.measured_from
        if of_all > _SHARE_TOKENS:
            lane.given /= 2
            lane.measured_from += of_all / 2

    def _end(self, request: Q, key: Hashable) -> None:
        lane = self._lane_at(key)
        assert lane is not None  # it has this request
        del lane.requests[request]
        del self._lane_of[request]
        if not lane.requests and lane is not self._background:
            del self._lanes[key]

    def _lane_at(self, key: Hashable) -> _Lane[Q] | None:
        return self._background if key is BACKGROUND else self._lanes.get(key)

    def _count(self, lane: _Lane[Q], num_rows: int, num_tokens: int) -> None:
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        lane.num_rows += num_rows
        lane.num_tokens += num_tokens
