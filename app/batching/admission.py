"""Decides whether a request may wait, from the queue, the measured throughput and the deadline.

A request is refused if its rows would wait too long, if they would end after the deadline, or if
the queue is full. Up to the limits of rows and tokens any task may queue. Beyond them, up to twice
the limits, only tasks that hold less than an equal share may: otherwise one task with a few long
lists would close the queue to all others, although they would wait for one round only.

`app.http.middleware` asks before a body is read (load shedding), `app.batching.batcher` asks again
before and after the rows are tokenized. Read `app.batching.workers` next.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from app.batching.queue import BatchLimits, BatchObserver, RowQueue
from app.errors import THE_REQUEST, THE_SERVER, DeadlineTooShortError, OverloadedError, WaitLimit

_SMALL_BATCH_S = 0.025  # time of a capped batch
_SMALL_BATCH_PART = 8  # a capped batch is at most this part of a full one ...
_SMALL_BATCH_TOKENS = 512  # ... or these tokens, if they are more
_RECENT_S = 10.0  # age up to which a measurement may refuse requests by itself
_SURPRISE = 2  # a batch that is faster by this factor counts even if nothing waited for it
_MEMORY = 0.8  # weight of the past in the moving average of tokens per second
_HARD_LIMIT = 2  # bound of the queue's memory, in multiples of its limits
_MAX_RETRY_AFTER_S = 60


@dataclass(eq=False)
class BatchTiming:
    """A batch on a share of the machine; it is under load if rows waited when it began."""

    num_tokens: int
    share: float
    began_at: float
    under_load: bool


class Speed(NamedTuple):
    """The throughput at one moment.

    Attributes:
        token_s: seconds a token; 0 while nothing is measured, so that nothing is refused for it.
        busy_s: seconds until the batches that run now are done.
        is_recent: whether the throughput was measured lately. An idle engine measures nothing, so
            an old value could refuse the same request forever.
    """

    token_s: float
    busy_s: float
    is_recent: bool


class ThroughputEstimate:
    """An exponential moving average (EMA) of the tokens per second that the machine runs.

    Only batches under load update it, because a batch of one row says nothing about the throughput
    under load. Batches that are much faster than expected update it, too: if a stall made every
    request look too slow, all would be refused and nothing would ever be measured again.

    Args:
        num_workers: number of batches that run at a time under load.
    """

    def __init__(self, num_workers: int = 1) -> None:
        self._num_workers = num_workers
        self._tokens_per_s: float | None = None
        self._measured_at = -math.inf
        self._running: set[BatchTiming] = set()

    def begin(
        self, num_tokens: int, now: float, share: float = 1.0, *, under_load: bool
    ) -> BatchTiming:
        """Record that a batch begins; return its timing, the argument of `end`."""
        timing = BatchTiming(num_tokens, share, now, under_load)
        self._running.add(timing)
        return timing

    def end(self, timing: BatchTiming, now: float) -> None:
        """Record the end of a batch; update the estimate if the batch ran under load."""
        self._running.discard(timing)
        speed = timing.num_tokens / timing.share / max(now - timing.began_at, 1e-6)
        past = self._tokens_per_s
        if timing.under_load or (past is not None and speed > _SURPRISE * past):
            self._tokens_per_s = speed if past is None else _MEMORY * past + (1 - _MEMORY) * speed
            self._measured_at = now

    def at(self, now: float) -> Speed:
        """Return the throughput at a time of the batcher's clock."""
        if self._tokens_per_s is None:
            return Speed(0.0, 0.0, is_recent=False)
        busy_s = 0.0
        for timing in self._running:
            expected_s = timing.num_tokens / self._tokens_per_s / timing.share
            busy_s += timing.share * max(expected_s - (now - timing.began_at), 0.0)
        return Speed(1 / self._tokens_per_s, busy_s, now - self._measured_at <= _RECENT_S)

    def small_batch_tokens(self, max_tokens: int) -> int:
        """Return how many tokens one task alone may fill of a batch that delays others.

        The batch should take `_SMALL_BATCH_S` on a worker. It is at most an eighth of a full batch,
        or the worker's part of 512 tokens if they are more, and at least half of that maximum,
        because shorter batches waste too much of a slow engine's throughput.

        Args:
            max_tokens: tokens of a full batch.
        """
        least = _SMALL_BATCH_TOKENS // self._num_workers
        most = min(max(max_tokens // _SMALL_BATCH_PART, least), max_tokens)
        if self._tokens_per_s is None:
            return most
        in_time = _SMALL_BATCH_S * self._tokens_per_s / self._num_workers
        return int(max(min(most, in_time), most / 2))


class AdmissionController:
    """Admits or refuses requests, and reports the refused ones to the observer."""

    def __init__(
        self,
        queue: RowQueue[Any],
        limits: BatchLimits,
        throughput: ThroughputEstimate,
        observer: BatchObserver,
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._throughput = throughput
        self._observer = observer

    def admit(
        self,
        key: Hashable,
        num_rows: int,
        num_tokens: int,
        deadline: float,
        now: float,
        *,
        num_reserved: int = 0,
    ) -> None:
        """Refuse rows that cannot wait or cannot be answered in time.

        A deadline that has passed is no reason to refuse: the request ends by it anyway.

        Args:
            key: lane that the rows would wait in.
            num_rows: number of rows; 0 while it is not known.
            num_tokens: tokens of the rows; 0 while they are not known.
            deadline: time at which the answer must be there.
            now: current time.
            num_reserved: number of rows with a reservation. They have been admitted before, so
                they are not refused for their wait or their number again.

        Raises:
            OverloadedError: the queue is full, or the rows would wait too long.
            DeadlineTooShortError: the rows would take too long even if nothing else waited.
        """
        speed = self._throughput.at(now)
        queue, limits = self._queue, self._limits
        wait_s = speed.busy_s + speed.token_s * queue.tokens_before(key)
        run_s = speed.token_s * num_tokens
        left_s = deadline - now
        limit = min(WaitLimit(limits.max_queue_s, THE_SERVER), WaitLimit(left_s, THE_REQUEST))
        if wait_s > limit.seconds and left_s > 0 and not num_reserved:
            self._refuse(wait_s, limit)
        new_rows = num_rows - num_reserved
        free_rows = limits.max_queue_rows - queue.num_rows - queue.num_reserved
        free_tokens = limits.max_queue_tokens - queue.num_tokens if queue.num_rows else math.inf
        is_over = new_rows > max(free_rows, 0) or num_tokens > free_tokens
        if num_rows and is_over and not self._fits_share(key, new_rows, num_tokens):
            self._refuse(wait_s)
        if run_s > left_s > 0 and speed.is_recent:
            self._observer.on_drop("rejected")
            raise DeadlineTooShortError(num_rows, num_tokens, run_s, left_s)
        if wait_s > left_s - run_s > 0 and speed.is_recent:
            self._refuse(wait_s, WaitLimit(left_s - run_s, THE_REQUEST))

    def _fits_share(self, key: Hashable, num_rows: int, num_tokens: int) -> bool:
        """Tell if rows fit beyond the limits because their lane holds less than its share."""
        queue, limits = self._queue, self._limits
        key_rows, key_tokens = queue.held_by(key)
        all_rows = queue.num_rows + queue.num_reserved
        num_shares = queue.count_keys(key) + 1  # one share stays free for the next task

        def fits(new: int, of_key: int, of_all: int, limit: int) -> bool:
            is_share = of_key + new <= limit / num_shares and of_all + new <= _HARD_LIMIT * limit
            return of_all + new <= limit or is_share

        # An empty queue takes a request of any number of tokens.
        return (num_rows <= 0 or fits(num_rows, key_rows, all_rows, limits.max_queue_rows)) and (
            not queue.num_rows
            or fits(num_tokens, key_tokens, queue.num_tokens, limits.max_queue_tokens)
        )

    def _refuse(self, wait_s: float, limit: WaitLimit | None = None) -> NoReturn:
        """Refuse with the estimated time to drain the queue as Retry-After."""
        self._observer.on_drop("rejected")
        retry_after_s = min(max(math.ceil(wait_s), 1), _MAX_RETRY_AFTER_S)
        num_rows = self._queue.num_rows + self._queue.num_reserved
        raise OverloadedError(num_rows, self._queue.num_tokens, retry_after_s, wait_s, limit)
