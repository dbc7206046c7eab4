"""The crew: threads that run batches, side by side on shares of the machine, or one on all of it.

The processors of one forward pass wait for each other at each of its hundreds of steps, and all of
them for one that the event loop or another program has taken. Batches side by side wait for nobody:
under load each thread has one, on its share of the processors. A few rows alone are answered sooner
by all of them together, so they get those while nothing else waits or runs.

When a batch raises, its requests are run again one by one, so that a request is not harmed by
another one's bad row; what raises again is that request's own error.

Knows no torch: a batch is run by any function from rows to as many results.

One thread that runs one function, for an event loop that must never block.

An executor of one thread would do, but the interpreter waits for those at exit: a forward pass that
hangs would keep a server from stopping. This thread is a daemon.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from app.batching.admission import Pace, Running
from app.batching.queue import BatchLimits, BatchObserver, Job, Row, RowQueue, count_tokens
from app.errors import BatchFailedError, DeadlineExceededError

A = TypeVar("A")
B = TypeVar("B")


class WorkerDiedError(Exception):
    """The function ended its thread (SystemExit and the like); nothing runs from now on."""


class Worker(Generic[A, B]):
    """Runs `function` on one argument at a time, in the order of the calls."""

    def __init__(self, function: Callable[[A], B], name: str) -> None:
        self.name = name
        self._function = function
        self._inbox: queue.SimpleQueue[tuple[A, asyncio.Future[B]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether calls are still run."""
        return self._thread.is_alive()

    async def call(self, argument: A) -> B:
        """Run the function in the thread.

        Raises:
            WorkerDiedError: the thread is gone.
            Exception: whatever the function raised.
        """
        if not self.is_alive:
            raise WorkerDiedError(f"thread {self._thread.name!r} has ended")
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._inbox.put((argument, future))
        return await future

    def stop(self) -> None:
        """End the thread once it has run what it was given; returns at once."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            argument, future = item
            try:
                result = self._function(argument)
            except Exception as error:  # noqa: BLE001 - the caller gets it, whatever it is
                _complete(future, None, error)
            except BaseException as error:  # noqa: BLE001 - the thread was told to end
                _complete(future, None, WorkerDiedError(f"ended by {error!r}"))
                return
            else:
                _complete(future, result, None)


def _complete(future: asyncio.Future[B], result: B | None, error: Exception | None) -> None:
    def set_outcome() -> None:
        if future.done():  # cancelled in the meantime
            return
        if isinstance(error, StopIteration):  # a future refuses it, and its waiter would hang
            future.set_exception(RuntimeError(f"the function raised {error!r}"))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(set_outcome)


logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Row)
T = TypeVar("T")

_ALONE_TOKENS = 96  # measured: of about three rows on two cores halves are as fast as the whole

_Batch = list[tuple[Job[R, T], int]]  # each row as its job and its position in there


@dataclass(frozen=True)
class Runners(Generic[R, T]):
    """How batches are run.

    Attributes:
        run: on a share of the machine; called in several threads at a time.
        run_alone: on all of it, while nothing else runs; None if that is the same.
        num_workers: how many shares there are, and batches at a time.
    """

    run: Callable[[Sequence[R]], Sequence[T]]
    run_alone: Callable[[Sequence[R]], Sequence[T]] | None = None
    num_workers: int = 1


@dataclass(eq=False)
class _Run(Generic[R, T]):
    """A batch on its way.

    Attributes:
        share: of the machine.
        pace: None until it is known whether rows wait for it.
    """

    batch: _Batch[R, T]
    worker: Worker[Callable[[], Sequence[T]], Sequence[T]]
    share: float
    pace: Running | None = None

    @property
    def num_tokens(self) -> int:
        return sum(job.rows[position].num_tokens for job, position in self.batch)


class Crew(Generic[R, T]):
    """Takes rows out of a queue and runs them.

    Args:
        runners: how.
        queue: filled by others, who call `wake` then.
        limits: of a batch on all of the machine; on a share of it one gets as much of the tokens.
        pace: told of every batch.
        observer: told of every batch, too.
        clock: of the deadlines.
    """

    def __init__(
        self,
        runners: Runners[R, T],
        queue: RowQueue[Job[R, T]],
        limits: BatchLimits,
        pace: Pace,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self._runners = runners
        self._queue = queue
        self._limits = limits
        self._pace = pace
        self._observer = observer
        self._clock = clock
        self._workers: list[Worker[Callable[[], Sequence[T]], Sequence[T]]] = [
            Worker(_call, name=f"batches-{number}") for number in range(runners.num_workers)
        ]
        self._free = list(self._workers)
        self._running: dict[_Run[R, T], asyncio.Task[None]] = {}
        self._is_woken = False
        # Of no request: what is logged of a batch is not that of the one which woke the crew.
        self._context = copy_context()
        self._on_end: Callable[[BaseException | None], None] | None = None

    def start(self, on_end: Callable[[BaseException | None], None]) -> None:
        """Begin; `on_end` is called, with the reason, if no batch can be run any more."""
        self._on_end = on_end

    def wake(self) -> None:
        """Look for rows soon: some were added, and others may be a moment later."""
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._start_all, context=self._context)

    @property
    def is_alive(self) -> bool:
        """False once no batch can be run any more, which only a restart of the process mends."""
        return self._on_end is not None and all(worker.is_alive for worker in self._workers)

    async def stop(self) -> None:
        """Run nothing more; what runs is left to its thread."""
        self._on_end = None
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def join(self, timeout_s: float) -> None:
        """End the threads, or leave those that don't end by themselves."""
        for worker in self._workers:
            worker.stop()
        joins = (asyncio.to_thread(worker.join, timeout_s) for worker in self._workers)
        await asyncio.gather(*joins)

    def _start_all(self) -> None:
        """Start as many batches as there is room and rows for."""
        self._is_woken = False
        if self._on_end is None:
            return
        try:
            now = self._clock()
            started = []
            while self._has_room and self._queue.num_rows:
                if run := self._start_next(now):
                    started.append(run)
            for run in started:
                rows_wait = self._queue.num_rows > 0
                run.pace = self._pace.begin(run.num_tokens, now, run.share, rows_wait=rows_wait)
        except Exception as error:  # noqa: BLE001 - nobody else would ever start a batch again
            self._end(error)

    def _end(self, error: BaseException) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

    @property
    def _has_room(self) -> bool:
        return bool(self._free) and all(run.share < 1 for run in self._running)

    def _start_next(self, now: float) -> _Run[R, T] | None:
        """Start a batch; None if all rows that would have been in it are too late."""
        batch_tokens, share = self._limits.max_batch_tokens, 1.0
        waiting, num_workers = self._queue.num_tokens, self._runners.num_workers
        many = waiting > _ALONE_TOKENS and self._queue.num_rows >= num_workers
        if num_workers > 1 and (self._running or many):
            # What waits is divided among those who are free.
            share = 1 / num_workers
            batch_tokens = min(batch_tokens // num_workers, max(waiting // len(self._free), 1))
        batch, expired = self._queue.take(self._limits.max_batch_rows, batch_tokens, now)
        for job in expired:
            job.fail(DeadlineExceededError(0.0))
        if not batch:
            return None
        # One thread only ever asks for all processors: OpenMP keeps a team for each that does. Else
        # it is taken last, since it then has to make its team smaller and larger again.
        worker = self._workers[0] if share == 1 else self._free[-1]
        self._free.remove(worker)
        run = _Run(batch, worker, share)
        self._running[run] = asyncio.create_task(
            self._serve(run), name=worker.name, context=self._context
        )
        return run

    async def _serve(self, run: _Run[R, T]) -> None:
        """Run a batch and start the next ones, before those who waited for it write answers."""
        try:
            await self._run(run)
        except Exception as error:  # noqa: BLE001 - a dead worker, or what nobody foresaw
            self._end(error)
        finally:
            del self._running[run]
            self._free.insert(0 if run.worker is self._workers[0] else 1, run.worker)
            if run.pace is not None:
                self._pace.end(run.pace, self._clock())
            self._start_all()

    async def _run(self, run: _Run[R, T]) -> None:
        """Run a batch; if that fails, each of its requests by itself."""
        error = await self._try(run, run.batch)
        if error is None:
            return
        parts: dict[Job[R, T], _Batch[R, T]] = {}
        for job, position in run.batch:
            parts.setdefault(job, []).append((job, position))
        if len(parts) == 1:
            self._fail(run.batch[0][0], error)
            return
        logger.warning("a batch of %d requests failed (%r); running each alone", len(parts), error)
        for job, part in parts.items():
            if job.deadline <= self._clock():
                job.fail(DeadlineExceededError(0.0))
            elif not job.future.done() and (error := await self._try(run, part)):
                self._fail(job, error)

    async def _try(self, run: _Run[R, T], batch: _Batch[R, T]) -> Exception | None:
        """Run rows; returns what was raised, unless it means that nothing can be run any more."""
        try:
            await self._forward(run, batch)
        except WorkerDiedError:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost loop of all batches must live
            return error
        return None

    async def _forward(self, run: _Run[R, T], batch: _Batch[R, T]) -> None:
        rows = [job.rows[position] for job, position in batch]
        jobs = {job: None for job, _ in batch}
        started = self._clock()
        for job in jobs:
            job.started_at = started if job.started_at is None else job.started_at
        whole = run.share == 1 and self._runners.run_alone
        results = await run.worker.call(partial(whole or self._runners.run, rows))
        seconds = self._clock() - started
        if len(results) != len(rows):
            raise RuntimeError(f"the engine gave {len(results)} results for {len(rows)} rows")
        for (job, position), result in zip(batch, results, strict=True):
            job.results[position] = result
        for job in jobs:
            job.compute_s += seconds
            job.finish()
        self._observer.on_batch(len(rows), count_tokens(rows), seconds)

    def _fail(self, job: Job[R, T], error: Exception) -> None:
        logger.error("the forward pass failed", exc_info=error)
        self._queue.remove(job)
        failure = BatchFailedError(f"the forward pass raised {type(error).__name__}")
        failure.__cause__ = error
        job.fail(failure)


def _call(run: Callable[[], Sequence[T]]) -> Sequence[T]:
    return run()
