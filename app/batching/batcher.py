"""Turns the requests of many clients into batches for one engine, and ends every request.

Rows wait in a `RowQueue`. As soon as the engine is free, the waiting rows become a batch, or
several that run side by side; no timer holds them back. Worker threads run the batches, so the
event loop never blocks. A request ends with its results, at its deadline, with an error, or when
its caller is cancelled; rows that have not reached the engine by then never do.

To follow a row, read `app.engine.engine` next, which computes its logits. The parts of the batcher
are `app.batching.queue`, `app.batching.admission` and `app.batching.workers`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from app.batching.admission import AdmissionController, ThroughputEstimate
from app.batching.queue import (
    BACKGROUND,
    Answer,
    BatchLimits,
    BatchObserver,
    PendingRequest,
    Row,
    RowQueue,
)
from app.batching.workers import Parallelism, WorkerPool
from app.errors import STOPPING, DeadlineExceededError, NotReadyError

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Row)
T = TypeVar("T")

_DEAD = "the batch worker has died; the server must be restarted"
_JOIN_S = 1.0


class Batcher(Generic[R, T]):
    """Queues rows and returns their results.

    Args:
        parallelism: functions that run a batch.
        limits: limits of a batch and of the queue.
        observer: receiver of all events.
        clock: source of the time that deadlines are compared with.

    Attributes:
        queue: the rows that wait for a batch.
        admission: decides whether rows may wait, also for callers that have not read them yet.
    """

    def __init__(
        self,
        parallelism: Parallelism[R, T],
        limits: BatchLimits,
        observer: BatchObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        throughput = ThroughputEstimate(parallelism.num_workers)
        self._observer = observer
        self._clock = clock
        self.queue: RowQueue[PendingRequest[R, T]] = RowQueue(throughput.small_batch_tokens)
        self._pool = WorkerPool(parallelism, self.queue, limits, throughput, observer, clock)
        self.admission = AdmissionController(self.queue, limits, throughput, observer)
        self._pending: set[PendingRequest[R, T]] = set()
        self._idle = asyncio.Event()
        self._refusal: str | None = "the server is starting"
        self._is_closed = False
        self._stop_by: float | None = None

    def start(self) -> None:
        """Begin to accept rows; call it in the event loop that will submit them."""
        self._refusal = None
        self._pool.start(self._on_pool_end)

    @property
    def is_alive(self) -> bool:
        """False if no batch can run: starting, stopped or dead."""
        return self._pool.is_alive

    def check_alive(self) -> None:
        """Raise if no batch can run; cheap enough for any probe.

        Raises:
            NotReadyError: starting, stopped or dead.
        """
        if not self.is_alive:
            raise NotReadyError(self._refusal or _DEAD)

    @property
    def failing_s(self) -> float:
        """The seconds for which every batch has failed; 0 after a success."""
        since = self._pool.failing_since
        return 0.0 if since is None else self._clock() - since

    @property
    def oldest_s(self) -> float:
        """The seconds that the oldest waiting row has waited; 0 if none waits."""
        oldest = self.queue.oldest()
        return 0.0 if oldest is None else self._clock() - oldest.queued_at

    async def wait_for_failure(self) -> None:
        """Wait until a batch fails; returns at once if none has succeeded since."""
        await self._pool.failure.wait()

    def give_up(self, reason: str) -> None:
        """Fail all requests, those to come too, because batches fail for good."""
        self._pool.end(RuntimeError(reason))

    @asynccontextmanager
    async def reserve(
        self, num_rows: int, *, key: Hashable = None, deadline: float
    ) -> AsyncIterator[Callable[[Sequence[R]], Awaitable[Answer[T]]]]:
        """Reserve queue space for rows that are still being tokenized.

        Yields a function that submits the rows and returns their results. Reserved rows are
        finished even if the batcher is told to stop meanwhile.

        Raises:
            OverloadedError: the queue is full, or the rows would wait too long.
            DeadlineTooShortError: the rows would take too long even if nothing else waited.
            NotReadyError: the batcher accepts no rows now.
            DeadlineExceededError: the deadline passed before the rows were submitted.
        """
        self._check_accepting()
        now = self._clock()
        self.admission.admit(key, num_rows, 0, deadline, now)
        self.queue.reserve(key, num_rows)
        num_reserved = num_rows

        async def submit(rows: Sequence[R]) -> Answer[T]:
            nonlocal num_reserved
            timeout.reschedule(None)  # from here on the request minds its deadline itself
            released, num_reserved = num_reserved, 0
            return await self._run(rows, key, deadline, num_reserved=released)

        timeout = asyncio.timeout(deadline - now)
        try:
            async with timeout:
                yield submit
        except TimeoutError:
            if not timeout.expired():
                raise
            self._observer.on_drop("expired")
            raise DeadlineExceededError(deadline - now) from None
        except asyncio.CancelledError:
            if num_reserved:  # otherwise `_run` has counted it
                self._observer.on_drop("cancelled")
            raise
        finally:
            self.queue.release(key, num_reserved)
            self._note_idle()

    async def submit(
        self, rows: Sequence[R], *, key: Hashable = None, deadline: float, urgent: bool = False
    ) -> Answer[T]:
        """Run rows without a reservation and return their results.

        Args:
            rows: at least one row.
            key: lane that the rows wait in; lanes take turns. The lane `BACKGROUND` is never
                refused, so its callers bound their rows themselves.
            deadline: time to give up, on the batcher's clock.
            urgent: whether the rows go to the head of the queue, even of a full one; meant for the
                readiness check.

        Raises:
            OverloadedError: the queue is full, or the rows would wait too long.
            DeadlineTooShortError: the rows would take too long even if nothing else waited.
            DeadlineExceededError: the deadline passed first.
            BatchFailedError: the engine raised on these rows; the cause is chained.
            NotReadyError: starting, stopping or dead.
        """
        self._check_accepting()
        return await self._run(rows, key, deadline, urgent=urgent)

    async def _run(
        self,
        rows: Sequence[R],
        key: Hashable,
        deadline: float,
        *,
        num_reserved: int = 0,
        urgent: bool = False,
    ) -> Answer[T]:
        """Queue rows in place of their reservation, and wait until their request ends."""
        now, loop = self._clock(), asyncio.get_running_loop()
        num_tokens = sum(row.num_tokens for row in rows)
        try:
            if self._is_closed:
                raise NotReadyError(self._refusal or _DEAD)
            if not urgent and key is not BACKGROUND:
                self.admission.admit(
                    key, len(rows), num_tokens, deadline, now, num_reserved=num_reserved
                )
        finally:
            self.queue.release(key, num_reserved)
        request: PendingRequest[R, T] = PendingRequest(
            rows, deadline, key, future=loop.create_future(), queued_at=now
        )
        self._pending.add(request)
        self.queue.add(request, urgent=urgent)
        self._pool.wake()
        timer = loop.call_later(deadline - now, request.expire)
        try:
            await request.future
        except (Exception, asyncio.CancelledError) as error:
            if not urgent:  # the server's own predictions are no requests
                self._observer.on_drop(_drop_reason(error))
            raise
        finally:
            timer.cancel()
            self.queue.remove(request)
            self._pending.discard(request)
            if request.future.done() and not request.future.cancelled():
                request.future.exception()  # marks it as seen if the caller was cancelled meanwhile
            self._note_idle()
        queue_s = (request.started_at or now) - now
        self._observer.on_answer(queue_s)
        results = [request.results[position] for position in range(len(rows))]
        compute_s = sum(run.ended_at - run.began_at for run in request.runs)
        return Answer(results, queue_s, compute_s, request.runs)

    async def stop(self, drain_timeout_s: float) -> None:
        """Accept no more rows, finish the accepted ones, and fail those left after the timeout.

        Returns when the threads have ended, or a second after the timeout if they hang. A second
        call waits for the same moment.
        """
        self._refusal = self._refusal or STOPPING
        self._stop_by = self._stop_by or time.monotonic() + drain_timeout_s + _JOIN_S
        if not self._is_idle and self._pool.is_alive:
            self._idle.clear()
            try:
                async with asyncio.timeout(drain_timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning("%d requests not finished in time", len(self._pending))
        self._is_closed = True
        await self._pool.stop()
        self._fail_all(STOPPING)
        await self._pool.join(max(0.0, self._stop_by - time.monotonic()))

    def _check_accepting(self) -> None:
        if self._refusal is not None:
            raise NotReadyError(self._refusal)

    @property
    def _is_idle(self) -> bool:
        return not self._pending and not self.queue.num_reserved

    def _note_idle(self) -> None:
        if self._is_idle:
            self._idle.set()

    def _fail_all(self, reason: str) -> None:
        for request in self._pending:
            self.queue.remove(request)
            request.fail(NotReadyError(reason))

    def _on_pool_end(self, error: BaseException | None) -> None:
        """Fail all pending requests when the worker pool dies."""
        self._is_closed = True
        if self._refusal is None:
            self._refusal = _DEAD
            logger.critical("%s", self._refusal, exc_info=error)
            self._fail_all(self._refusal)


def _drop_reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return "expired" if isinstance(error, DeadlineExceededError) else "failed"
