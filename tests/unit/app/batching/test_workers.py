"""The worker pool runs several batches at a time; worker threads never hold up an exit."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from functools import partial

import pytest

from app.batching.batcher import Batcher
from app.batching.queue import BatchLimits
from app.batching.workers import Parallelism, WorkerDiedError, WorkerThread
from app.errors import BatchFailedError, NotReadyError
from app.process.lifetime import run_in_own_thread
from app.process.logs import request_id_var


def call_all(
    worker: WorkerThread, function: Callable[[int], int], *arguments: int
) -> list[int | BaseException]:
    async def run() -> list[int | BaseException]:
        calls = (worker.call(partial(function, argument)) for argument in arguments)
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def test_runs_calls_in_order_in_one_other_thread() -> None:
    seen: list[tuple[int, str]] = []

    def double(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * 2

    worker = WorkerThread("doubler")
    assert call_all(worker, double, 1, 2, 3) == [2, 4, 6]
    assert seen == [(1, "doubler"), (2, "doubler"), (3, "doubler")]
    worker.stop()
    worker.thread.join(5.0)
    assert not worker.thread.is_alive()


@pytest.mark.parametrize(
    "error", [ValueError("no"), StopIteration(), futures.CancelledError(), asyncio.CancelledError()]
)
def test_errors_reach_the_caller_and_the_thread_lives(error: BaseException) -> None:
    def fail(number: int) -> int:
        if number == 1:
            raise error
        return number

    worker = WorkerThread("failing")
    failed = call_all(worker, fail, 1)[0]
    assert isinstance(failed, Exception)
    if isinstance(error, Exception):
        assert call_all(worker, fail, 2) == [2]
    worker.stop()


def test_a_thread_told_to_end_is_dead_for_all_callers() -> None:
    def end(_number: int) -> int:
        raise SystemExit(3)

    worker = WorkerThread("ending")
    (first,) = call_all(worker, end, 1)
    assert isinstance(first, WorkerDiedError)
    worker.thread.join(5.0)
    assert not worker.thread.is_alive()
    (second,) = call_all(worker, end, 2)
    assert isinstance(second, WorkerDiedError)


def test_does_not_keep_the_process_alive() -> None:
    never = threading.Event()
    worker = WorkerThread("hanging")

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.call(never.wait), 0.05)

    asyncio.run(give_up())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "hanging"]
    assert thread.daemon
    never.set()  # its late result meets a closed loop, which must not be an error
    worker.stop()
    worker.thread.join(5.0)
    assert not worker.thread.is_alive()


def test_a_separate_thread_has_ended_when_its_result_is_there() -> None:
    thread = run_in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_errors_of_a_separate_thread_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_own_thread(lambda: 1 // 0)


FAR = 1e9


@dataclass(frozen=True)
class Row:
    value: int
    num_tokens: int = 10


@dataclass
class Engine:
    """Squares values, holds batches while closed, notes what ran where."""

    is_open: threading.Event = field(default_factory=threading.Event)
    batches: list[tuple[str, str, list[int]]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run_share(self, rows: Sequence[Row]) -> list[int]:
        return self._run("share", rows)

    def run_full(self, rows: Sequence[Row]) -> list[int]:
        return self._run("full", rows)

    def _run(self, how: str, rows: Sequence[Row]) -> list[int]:
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self.batches.append((how, threading.current_thread().name, [r.value for r in rows]))
        try:
            assert self.is_open.wait(10)
            if any(row.value < 0 for row in rows):
                raise ValueError("poison")
            if any(row.value == 666 for row in rows):
                raise SystemExit(1)
            return [row.value**2 for row in rows]
        finally:
            with self.lock:
                self.running -= 1


class Silent:
    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        pass

    def on_answer(self, queue_s: float) -> None:
        pass

    def on_drop(self, reason: str) -> None:
        pass


@dataclass
class Rig:
    engine: Engine
    batcher: Batcher[Row, int]

    def submit(self, *values: int, tokens: int = 10) -> asyncio.Task[list[int]]:
        async def results() -> list[int]:
            rows = [Row(value, tokens) for value in values]
            answer = await self.batcher.submit(rows, deadline=time.monotonic() + 100)
            return answer.results

        return asyncio.create_task(results())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - threads make it true
                await asyncio.sleep(0.001)


def run(test: Callable[[Rig], Awaitable[None]], workers: int = 2, tokens: int = 1000) -> Engine:
    engine = Engine()

    async def main() -> None:
        parallelism = Parallelism(engine.run_share, engine.run_full, workers)
        limits = BatchLimits(256, tokens, 10_000, 1_000_000)
        batcher: Batcher[Row, int] = Batcher(parallelism, limits, Silent())
        batcher.start()
        try:
            await test(Rig(engine, batcher))
        finally:
            engine.is_open.set()
            await batcher.stop(5.0)

    asyncio.run(main())
    return engine


def test_a_few_rows_by_themselves_get_the_full_machine() -> None:
    async def test(rig: Rig) -> None:
        rig.engine.is_open.set()
        for value in range(5):
            assert await rig.submit(value) == [value**2]

    engine = run(test)
    assert {(how, name) for how, name, _ in engine.batches} == {("full", "batches-0")}


def test_while_a_batch_has_the_full_machine_others_wait_and_share_it_then() -> None:
    async def test(rig: Rig) -> None:
        first = rig.submit(0)
        await rig.until(lambda: rig.engine.running == 1)
        others = [rig.submit(value) for value in range(1, 21)]
        await asyncio.sleep(0.02)
        assert rig.engine.running == 1
        rig.engine.is_open.set()
        assert await first == [0]
        assert [await other for other in others] == [[v**2] for v in range(1, 21)]

    engine = run(test)
    assert [(how, len(rows)) for how, _, rows in engine.batches] == [
        ("full", 1),
        ("share", 10),
        ("share", 10),
    ]


def test_a_free_share_takes_new_rows_at_once() -> None:
    async def test(rig: Rig) -> None:
        first = rig.submit(*range(8), tokens=100)
        await rig.until(lambda: rig.engine.running == 2)
        rig.engine.is_open.set()
        await first
        rig.engine.is_open.clear()
        second = rig.submit(*range(4), tokens=100)
        await rig.until(lambda: rig.engine.running == 2)
        assert [len(rows) for _, _, rows in rig.engine.batches] == [4, 4, 2, 2]
        rig.engine.is_open.set()
        await second

    run(test)


def test_a_share_of_the_machine_gets_its_part_of_the_tokens() -> None:
    async def test(rig: Rig) -> None:
        everything = rig.submit(*range(100), tokens=100)
        await rig.until(lambda: rig.engine.running == 4)
        rig.engine.is_open.set()
        assert await everything == [value**2 for value in range(100)]

    engine = run(test, workers=4, tokens=2000)
    assert max(len(rows) for _, _, rows in engine.batches) == 5
    assert len({name for _, name, _ in engine.batches}) == 4


def test_one_worker_runs_one_batch_at_a_time() -> None:
    async def test(rig: Rig) -> None:
        tasks = [rig.submit(value, tokens=100) for value in range(20)]
        rig.engine.is_open.set()
        await asyncio.gather(*tasks)

    engine = run(test, workers=1)
    assert engine.most_running == 1
    assert {how for how, _, _ in engine.batches} == {"full"}


def test_a_bad_row_fails_only_its_request() -> None:
    async def test(rig: Rig) -> None:
        bad = rig.submit(-1, tokens=100)
        good = [rig.submit(value, tokens=100) for value in range(1, 12)]
        await rig.until(lambda: rig.engine.running == 2)
        rig.engine.is_open.set()
        with pytest.raises(BatchFailedError):
            await bad
        assert [await task for task in good] == [[value**2] for value in range(1, 12)]

    run(test)


def test_a_dead_thread_ends_the_pool() -> None:
    """A pool with half its threads would look healthy and be overloaded."""

    async def test(rig: Rig) -> None:
        tasks = [rig.submit(value, tokens=100) for value in (1, 2, 666, 4)]
        await rig.until(lambda: rig.engine.running == 2)
        waiting = rig.submit(7)
        rig.engine.is_open.set()
        ended = await asyncio.gather(*tasks, waiting, return_exceptions=True)
        assert isinstance(ended[2], NotReadyError)
        with pytest.raises(NotReadyError):
            rig.batcher.check_alive()
        with pytest.raises(NotReadyError, match="died"):
            await rig.submit(1)

    run(test)


def test_the_next_batch_starts_before_the_answers_of_the_last_are_written() -> None:
    """Writing them takes the event loop milliseconds, in which the engine would stand still."""

    async def test(rig: Rig) -> None:
        first = rig.submit(1)
        await rig.until(lambda: rig.engine.running == 1)
        second = rig.submit(2)
        await asyncio.sleep(0.01)
        seen: list[int] = []
        first.add_done_callback(lambda _: seen.append(len(rig.batcher._pool._running)))
        rig.engine.is_open.set()
        await asyncio.gather(first, second)
        assert seen == [1]

    run(test)


def test_stopping_finishes_the_batches_of_every_thread() -> None:
    async def test(rig: Rig) -> None:
        tasks = [rig.submit(value, tokens=100) for value in range(8)]
        await rig.until(lambda: rig.engine.running == 2)
        stopping = asyncio.create_task(rig.batcher.stop(5.0))
        await asyncio.sleep(0.01)
        rig.engine.is_open.set()
        assert [await task for task in tasks] == [[value**2] for value in range(8)]
        await stopping

    run(test)


def test_one_long_row_gets_the_full_machine() -> None:
    async def test(rig: Rig) -> None:
        rig.engine.is_open.set()
        await rig.submit(3, tokens=500)

    assert [how for how, _, _ in run(test).batches] == ["full"]


def test_log_records_of_a_batch_do_not_carry_the_id_of_the_request_that_woke_the_pool() -> None:
    seen: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(request_id_var.get())

    async def test(rig: Rig) -> None:
        rig.engine.is_open.set()
        before = request_id_var.get()
        token = request_id_var.set("innocent")
        innocent = rig.submit(1)
        request_id_var.reset(token)
        bad = rig.submit(-1)
        await asyncio.gather(innocent, bad, return_exceptions=True)
        assert set(seen) == {before}

    handler = Noting()
    logging.getLogger("app.batching.workers").addHandler(handler)
    try:
        run(test)
    finally:
        logging.getLogger("app.batching.workers").removeHandler(handler)
