"""Runs batches in a pool of threads: several on shares of the machine, or one on all of it.

The cores of one forward pass wait for each other at each of its hundreds of steps, and for any core
that the event loop or another program has taken. Batches on shares of the machine wait for nothing,
so under load each worker thread runs one of them. A few rows by themselves are answered sooner by
all cores together, so they get the full machine while nothing else waits or runs.

If a batch raises, its requests run again one by one. So a bad row fails its own request only, and
the error of the second run belongs to that request.

A batch is run by any function from rows to results. Read `app.engine.engine` for the real one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from app.batching.admission import BatchTiming, ThroughputEstimate
from app.batching.queue import (
    Batch,
    BatchLimits,
    BatchObserver,
    BatchRun,
    PendingRequest,
    Row,
    RowQueue,
)
from app.errors import BatchFailedError

logger = logging.getLogger(__name__)

B = TypeVar("B")
R = TypeVar("R", bound=Row)
T = TypeVar("T")

_HANGING_S = 300.0  # no batch takes so long; a slow file ends after 10 s
# Up to about three rows, two halves of a two-core machine are no faster than the full machine.
FULL_MACHINE_TOKENS = 96


class WorkerDiedError(Exception):
    """A function has ended its thread (by SystemExit and the like); the thread runs no more."""


class WorkerThread:
    """A daemon thread that runs functions for the event loop, in the order of the calls.

    A `ThreadPoolExecutor` with one thread would keep the process from exiting while a forward pass
    hangs, because the interpreter waits for executors at exit.
    """

    def __init__(self, name: str) -> None:
        self._inbox: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    async def call(self, function: Callable[[], B]) -> B:
        """Run a function in the thread and return its result.

        Raises:
            WorkerDiedError: the thread has ended.
            Exception: any exception of the function.
        """
        if not self.thread.is_alive():
            raise WorkerDiedError(f"thread {self.thread.name!r} has ended")
        future: Future[B] = Future()
        self._inbox.put((function, future))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """Ask the thread to end after the functions it was given; returns at once."""
        self._inbox.put(None)

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            function, future = item
            if not future.set_running_or_notify_cancel():  # its caller waits no more
                continue
            try:
                future.set_result(function())
            except (StopIteration, CancelledError) as error:  # its caller would hang
                future.set_exception(RuntimeError(f"the function raised {error!r}"))
            except Exception as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)
            except BaseException as error:  # noqa: BLE001 - the thread was told to end
                future.set_exception(WorkerDiedError(f"ended by {error!r}"))
                return
            del item, function, future  # else the rows would live until the next batch


_Rows = list[tuple[PendingRequest[R, T], int]]  # each row as its request and its position there


@dataclass(frozen=True)
class Parallelism(Generic[R, T]):
    """The ways to run a batch.

    Attributes:
        on_share: function that runs rows on a share of the machine, in several threads at a time.
        on_full_machine: function that runs rows on the full machine; None if it is the same.
        num_workers: number of shares, and of batches that run at a time.
    """

    on_share: Callable[[Sequence[R]], Sequence[T]]
    on_full_machine: Callable[[Sequence[R]], Sequence[T]] | None = None
    num_workers: int = 1


@dataclass(eq=False)
class RunningBatch(Generic[R, T]):
    """A batch that runs in a worker thread; `timing` is None until it is known if rows wait."""

    batch: Batch[PendingRequest[R, T]]
    worker: WorkerThread
    share: float
    timing: BatchTiming | None = None


class WorkerPool(Generic[R, T]):
    """Takes rows out of the queue and runs them.

    Args:
        parallelism: functions that run a batch.
        queue: rows to run; code that adds rows calls `wake`.
        limits: limits of a batch on the full machine; a share gets its fraction of the tokens.
        throughput: estimate that the pool updates.
        observer: receiver of an event for each batch.
        clock: source of the time that deadlines are compared with.

    Attributes:
        failing_since: time of the first failure since the last success; None after a success.
        failure: event that is set while `failing_since` is a time.
    """

    def __init__(
        self,
        parallelism: Parallelism[R, T],
        queue: RowQueue[PendingRequest[R, T]],
        limits: BatchLimits,
        throughput: ThroughputEstimate,
        observer: BatchObserver,
        clock: Callable[[], float],
    ) -> None:
        self._parallelism = parallelism
        self._queue = queue
        self._limits = limits
        self._throughput = throughput
        self._observer = observer
        self._clock = clock
        self._workers = [WorkerThread(f"batches-{n}") for n in range(parallelism.num_workers)]
        self._free = list(self._workers)
        self._running: dict[RunningBatch[R, T], asyncio.Task[None]] = {}
        self._is_woken = False
        self._num_runs = 0
        self.failing_since: float | None = None
        self.failure = asyncio.Event()
        # Log records of a batch must not carry the request id of the request that woke the pool.
        self._context = copy_context()
        self._on_end: Callable[[BaseException | None], None] | None = None

    def start(self, on_end: Callable[[BaseException | None], None]) -> None:
        """Begin; `on_end` is called with the reason if batches can never run again."""
        self._on_end = on_end

    def wake(self) -> None:
        """Start batches in the next round of the event loop, which may add more rows by then."""
        if not self._is_woken:
            self._is_woken = True
            asyncio.get_running_loop().call_soon(self._start_batches, context=self._context)

    @property
    def is_alive(self) -> bool:
        """False if batches can never run again, which only a restart of the process mends."""
        return self._on_end is not None and all(
            worker.thread.is_alive() for worker in self._workers
        )

    async def stop(self) -> None:
        """Start no more batches; the threads finish the batches that run."""
        self._on_end = None
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values())

    async def join(self, timeout_s: float) -> None:
        """End the threads; threads that do not end in time are left behind."""
        for worker in self._workers:
            worker.stop()
        joins = (asyncio.to_thread(worker.thread.join, timeout_s) for worker in self._workers)
        await asyncio.gather(*joins)

    def _start_batches(self) -> None:
        """Start as many batches as there are rows and free workers for."""
        self._is_woken = False
        if self._on_end is None:
            return
        try:
            now = self._clock()
            started = []
            while self._queue.num_rows and self._free:
                if any(running.share == 1 for running in self._running):
                    break
                if running := self._start_next(now):
                    started.append(running)
            under_load = self._queue.num_rows > 0
            for running in started:
                running.timing = self._throughput.begin(
                    running.batch.num_tokens, now, running.share, under_load=under_load
                )
        except Exception as error:  # noqa: BLE001 - otherwise no batch would ever start again
            self.end(error)

    def end(self, error: BaseException) -> None:
        """Start no more batches, because this error makes all of them fail."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

    def _start_next(self, now: float) -> RunningBatch[R, T] | None:
        """Start a batch; returns None if the deadlines of all its rows have passed."""
        batch_tokens, share = self._limits.max_batch_tokens, 1.0
        waiting, num_workers = self._queue.num_tokens, self._parallelism.num_workers
        is_much = waiting > FULL_MACHINE_TOKENS and self._queue.num_rows >= num_workers
        if num_workers > 1 and (self._running or is_much):
            # The free workers divide the waiting tokens.
            share = 1 / num_workers
            batch_tokens = min(batch_tokens // num_workers, max(waiting // len(self._free), 1))
        batch = self._queue.take(self._limits.max_batch_rows, batch_tokens, now)
        for request in batch.expired:
            request.expire()
        if not batch.rows:
            return None
        # Only one thread ever uses the full machine, because OpenMP keeps a team of threads for
        # each thread that does. That worker is the last to get a share, because it then has to
        # shrink its team and grow it again.
        worker = self._workers[0] if share == 1 else self._free[-1]
        self._free.remove(worker)
        running = RunningBatch(batch, worker, share)
        self._running[running] = asyncio.create_task(
            self._serve(running), name=worker.thread.name, context=self._context
        )
        return running

    async def _serve(self, running: RunningBatch[R, T]) -> None:
        """Run a batch, then start the next ones before the callers write their answers."""
        hangs = RuntimeError(f"a batch has run for {_HANGING_S:g} s")
        timer = asyncio.get_running_loop().call_later(_HANGING_S, self.end, hangs)
        try:
            await self._run_or_split(running)
        except Exception as error:  # noqa: BLE001 - a dead worker, or a bug
            self.end(error)
        finally:
            timer.cancel()
            del self._running[running]
            self._free.insert(0 if running.worker is self._workers[0] else 1, running.worker)
            if running.timing is not None:
                self._throughput.end(running.timing, self._clock())
            self._start_batches()

    async def _run_or_split(self, running: RunningBatch[R, T]) -> None:
        """Run a batch; if it fails, run each of its requests by itself."""
        error = await self._run(running, running.batch.rows)
        if error is None:
            return
        parts: dict[PendingRequest[R, T], _Rows[R, T]] = {}
        for request, position in running.batch.rows:
            parts.setdefault(request, []).append((request, position))
        if len(parts) == 1:
            self._fail(running.batch.rows[0][0], error)
            return
        logger.warning("a batch of %d requests failed (%r); running each alone", len(parts), error)
        for request, rows in parts.items():
            if request.deadline <= self._clock():
                request.expire()
            elif not request.future.done() and (error := await self._run(running, rows)):
                self._fail(request, error)

    async def _run(self, running: RunningBatch[R, T], batch_rows: _Rows[R, T]) -> Exception | None:
        """Run rows and hand out their results, or return the error of the engine."""
        rows = [request.rows[position] for request, position in batch_rows]
        requests = dict.fromkeys(request for request, _ in batch_rows)
        started_at = self._clock()
        for request in requests:
            request.started_at = started_at if request.started_at is None else request.started_at
        on_full_machine = running.share == 1 and self._parallelism.on_full_machine
        function = on_full_machine or self._parallelism.on_share
        try:
            results = await running.worker.call(partial(function, rows))
            ended_at = self._clock()
            if len(results) != len(rows):
                raise RuntimeError(f"the engine gave {len(results)} results for {len(rows)} rows")
            for (request, position), result in zip(batch_rows, results, strict=True):
                request.results[position] = result
            self._num_runs += 1
            num_tokens = sum(row.num_tokens for row in rows)
            run = BatchRun(self._num_runs, len(rows), num_tokens, started_at, ended_at)
            for request in requests:
                request.runs.append(run)
                request.finish()
            fill = num_tokens / (self._limits.max_batch_tokens * running.share)
            self._observer.on_batch(len(rows), num_tokens, ended_at - started_at, fill)
        except WorkerDiedError:
            raise
        except Exception as error:  # noqa: BLE001 - the pool must survive any engine and observer
            # The frames hold the tensors of the failed pass. If memory was short, the next pass of
            # these rows needs theirs.
            traceback.clear_frames(error.__traceback__)
            if self.failing_since is None:
                self.failing_since = self._clock()
                self.failure.set()
            return error
        self.failing_since = None
        self.failure.clear()
        return None

    def _fail(self, request: PendingRequest[R, T], error: Exception) -> None:
        logger.error("the forward pass failed", exc_info=error)
        self._queue.remove(request)
        failure = BatchFailedError(f"the forward pass raised {type(error).__name__}")
        failure.__cause__ = error
        request.fail(failure)
