"""The batcher: many requests, one engine, and every request ends.

Rows wait in a `RowQueue`. The moment the engine is free, what waits (up to a row and a token limit)
becomes a batch, or several side by side; there is no timer and no idle wait. Threads run them
(`app.batching.workers`), the event loop never does. A request ends with its results, with its deadline, with an
error, or when its caller is cancelled; in the last three cases rows that have not reached the
engine never do.

What can't be answered in time is refused at once (`app.batching.admission`): the queue is bounded by how long its
rows would have to wait at the pace measured (`app.batching.admission`), and by rows and tokens, which bound its
memory.

Knows no torch and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from app.batching.admission import Pace, Room
from app.batching.queue import Answer, BatchLimits, BatchObserver, Job, Row, RowQueue, count_tokens
from app.batching.workers import Crew, Runners
from app.errors import DeadlineExceededError, NotReadyError

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Row)
T = TypeVar("T")

_DEAD = "the batch worker has died; the server must be restarted"


class Batcher(Generic[R, T]):
    """Turns concurrent `submit` calls into batches."""

    def __init__(
        self,
        runners: Runners[R, T],
        limits: BatchLimits,
        observer: BatchObserver,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observer = observer
        self._clock = clock
        self._pace = Pace(runners.num_workers)
        self._queue: RowQueue[Job[R, T]] = RowQueue(self._pace.short_budget)
        self._crew = Crew(runners, self._queue, limits, self._pace, observer, clock)
        self._jobs: set[Job[R, T]] = set()
        self._room = Room(self._queue, limits, self._pace, observer)
        self._idle = asyncio.Event()
        self._refusal: str | None = "the server is starting"

    def start(self) -> None:
        """Begin to take rows; must be called in the event loop that will submit them."""
        self._refusal = None
        self._crew.start(self._on_crew_end)

    @property
    def is_alive(self) -> bool:
        """False once no batch can be run any more, which only a restart of the process mends."""
        return self._crew.is_alive

    def check_alive(self) -> None:
        """Cheap enough for any probe.

        Raises:
            NotReadyError: not alive.
        """
        if not self.is_alive:
            raise NotReadyError(self._refusal or _DEAD)

    @property
    def queued_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._queue.num_rows

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a batch."""
        return self._queue.num_tokens

    def check_wait(self, key: Hashable, deadline: float) -> None:
        """Refuse rows that would wait too long; cheap, for use before anything is known of them.

        Args:
            key: whose rows they are, as in `submit`.
            deadline: when they must be answered, on the batcher's clock.

        Raises:
            OverloadedError: at the pace measured they would not begin to run in time.
        """
        self._room.check_wait(key, deadline, self._clock())

    @asynccontextmanager
    async def announce(
        self, num_rows: int, *, key: Hashable = None, deadline: float
    ) -> AsyncIterator[Callable[[Sequence[R]], Awaitable[Answer[T]]]]:
        """Hold room in the queue for rows that are still being tokenized.

        Gives the function that submits them, like `submit`. What was announced is finished even
        when the batcher is told to stop meanwhile.

        Raises:
            OverloadedError: there is no room, or they would wait too long.
            DeadlineTooShortError: they take longer than they may, whatever else waits.
            NotReadyError: nothing is taken now.
            DeadlineExceededError: the deadline passed before the rows were submitted.
        """
        self._check_accepting()
        self.check_wait(key, deadline)
        announced_at = self._clock()
        self._room.check_size(key, num_rows, 0, announced_at)
        held = num_rows
        self._room.announce(key, held)

        def release() -> None:
            nonlocal held
            self._room.announce(key, -held)
            held = 0

        async def submit(rows: Sequence[R]) -> Answer[T]:
            timeout.reschedule(None)  # from here on the job minds its deadline
            self._check_room(key, rows, deadline, num_new=len(rows) - held)
            release()
            return await self._answer(rows, key, deadline, urgent=False)

        timeout = asyncio.timeout(deadline - announced_at)
        try:
            async with timeout:
                yield submit
        except TimeoutError:
            if not timeout.expired():
                raise
            self._observer.on_drop("expired")
            raise DeadlineExceededError(deadline - announced_at) from None
        except asyncio.CancelledError:
            if held:  # else the job has counted it
                self._observer.on_drop("cancelled")
            raise
        finally:
            release()
            self._note_idle()

    async def submit(
        self, rows: Sequence[R], *, key: Hashable = None, deadline: float, urgent: bool = False
    ) -> Answer[T]:
        """Have rows run and wait for their results.

        Args:
            rows: at least one.
            key: whose share of the engine they use; keys take turns.
            deadline: when to give up, on the batcher's clock.
            urgent: go to the head of the queue, even of a full one; for the readiness check.

        Raises:
            OverloadedError: the queue has no room for them, or they would wait too long.
            DeadlineTooShortError: they take longer than they may, whatever else waits.
            DeadlineExceededError: the deadline passed first.
            BatchFailedError: the engine raised on these rows; the cause is chained.
            NotReadyError: starting, stopping or dead.
        """
        self._check_accepting()
        if not urgent:
            self.check_wait(key, deadline)
            self._check_room(key, rows, deadline, num_new=len(rows))
        return await self._answer(rows, key, deadline, urgent=urgent)

    async def _answer(
        self, rows: Sequence[R], key: Hashable, deadline: float, *, urgent: bool
    ) -> Answer[T]:
        self.check_alive()
        now = self._clock()
        future = asyncio.get_running_loop().create_future()
        job: Job[R, T] = Job(rows, deadline, key, future=future, queued_at=now)
        self._jobs.add(job)
        self._queue.add(job, urgent=urgent)
        self._crew.wake()
        try:
            await self._outcome(job)
        finally:
            self._forget(job)
        queue_s = (job.started_at or now) - job.queued_at
        self._observer.on_answer(queue_s)
        results = [job.results[position] for position in range(len(rows))]
        return Answer(results, queue_s, job.compute_s)

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no more, finish what was taken, and answer NotReadyError to what is left then."""
        self._refusal = self._refusal or "the server is shutting down"
        if not self._is_idle and self.is_alive:
            self._idle.clear()
            try:
                async with asyncio.timeout(drain_timeout_s):
                    await self._idle.wait()
            except TimeoutError:
                logger.warning("%d requests not finished in time", len(self._jobs))
        await self._crew.stop()
        self._fail_all("the server is shutting down")
        await self._crew.join(1.0)

    def _check_accepting(self) -> None:
        if self._refusal is not None:
            raise NotReadyError(self._refusal)

    def _check_room(
        self, key: Hashable, rows: Sequence[R], deadline: float, *, num_new: int
    ) -> None:
        """Refuse rows, of which so many were not announced."""
        now, num_tokens = self._clock(), count_tokens(rows)
        self._room.check_size(key, num_new, num_tokens, now)
        self._room.check_end(key, len(rows), num_tokens, deadline, now)

    async def _outcome(self, job: Job[R, T]) -> None:
        """Wait for the job's end; raises how it ended if not well, and counts that."""
        late = DeadlineExceededError(job.deadline - job.queued_at)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(job.deadline - self._clock(), job.fail, late)
        try:
            await job.future
        except DeadlineExceededError:
            self._observer.on_drop("expired")
            raise late from None
        except asyncio.CancelledError:
            self._observer.on_drop("cancelled")
            raise
        except Exception:
            self._observer.on_drop("failed")
            raise
        finally:
            timer.cancel()

    def _forget(self, job: Job[R, T]) -> None:
        self._queue.remove(job)
        self._jobs.discard(job)
        if job.future.done() and not job.future.cancelled():
            job.future.exception()  # marks it as seen, when the caller was cancelled meanwhile
        self._note_idle()

    @property
    def _is_idle(self) -> bool:
        return not self._jobs and not self._room.num_announced

    def _note_idle(self) -> None:
        if self._is_idle:
            self._idle.set()

    def _fail_all(self, reason: str) -> None:
        for job in self._jobs:
            self._queue.remove(job)
            job.fail(NotReadyError(reason))

    def _on_crew_end(self, error: BaseException | None) -> None:
        """Nobody may wait for a crew that has ended, whatever ended it."""
        if self._refusal is None:
            self._refusal = _DEAD
            logger.critical("%s", self._refusal, exc_info=error)
            self._fail_all(self._refusal)
