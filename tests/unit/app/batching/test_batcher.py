"""The batcher with a plain function as its engine: every request ends, and ends rightly."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.batching.batcher import Batcher
from app.batching.queue import QUANTUM_TOKENS, BatchLimits
from app.batching.workers import Parallelism
from app.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DeadlineTooShortError,
    NotReadyError,
    OverloadedError,
)

FAR = 1e6


@dataclass(frozen=True)
class Row:
    value: int
    num_tokens: int = 10


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Engine:
    """Squares values; can be held and made to fail."""

    batches: list[list[int]] = field(default_factory=list)
    is_poison: Callable[[int], bool] = lambda value: value < 0
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, rows: Sequence[Row]) -> list[int]:
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append([row.value for row in rows])
        for row in rows:
            if self.is_poison(row.value):
                raise ValueError(f"poison {row.value}")
        return [row.value**2 for row in rows]


@dataclass
class Observer:
    batches: list[tuple[int, int]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        assert seconds >= 0
        self.batches.append((num_rows, num_tokens))

    def on_answer(self, queue_s: float) -> None:
        self.waits.append(queue_s)

    def on_drop(self, reason: str) -> None:
        self.drops[reason] += 1


@dataclass
class Rig:
    """A started batcher and what it is made of."""

    engine: Engine
    observer: Observer
    clock: Clock
    batcher: Batcher[Row, int]

    def submit(self, *values: int, deadline: float = FAR, **more: Any) -> asyncio.Task[Any]:
        rows = [Row(value) for value in values]
        return asyncio.create_task(self.batcher.submit(rows, deadline=deadline, **more))

    def check_wait(self, key: str | None, deadline: float) -> None:
        """Ask as the middleware does, which knows no rows."""
        self.batcher.admission.admit(key, 0, 0, deadline, self.clock())

    async def stall(self) -> asyncio.Task[Any]:
        """Hold the engine with a row in it."""
        self.engine.gate.clear()
        self.engine.started.clear()
        task = self.submit(1000)
        await asyncio.to_thread(self.engine.started.wait, 5)
        return task


def run(test: Callable[[Rig], Awaitable[None]], run_batch: Any = None, **limits: float) -> Rig:
    """Run a test against a fresh batcher, and stop that."""
    engine, observer, clock = Engine(), Observer(), Clock()
    given = {"max_batch_rows": 4, "max_batch_tokens": 100} | limits
    given = {"max_queue_rows": 100, "max_queue_tokens": 1000} | given

    async def main() -> Rig:
        batcher: Batcher[Row, int] = Batcher(
            Parallelism(run_batch or engine),
            BatchLimits(**given),  # type: ignore[arg-type]
            observer,
            clock=clock,
        )
        rig = Rig(engine, observer, clock, batcher)
        batcher.start()
        try:
            await test(rig)
        finally:
            engine.gate.set()
            await batcher.stop(5.0)
        return rig

    return asyncio.run(main())


def test_results_come_in_the_order_of_the_rows() -> None:
    async def test(rig: Rig) -> None:
        answer = await rig.submit(*range(10))
        assert answer.results == [value**2 for value in range(10)]

    rig = run(test)
    assert [len(batch) for batch in rig.engine.batches] == [4, 4, 2]
    assert rig.observer.batches == [(4, 40), (4, 40), (2, 20)]


def test_a_lone_request_does_not_wait_for_others() -> None:
    async def test(rig: Rig) -> None:
        started = time.monotonic()
        await rig.submit(3)
        assert time.monotonic() - started < 5.0

    run(test)


def test_rows_that_wait_while_the_engine_is_busy_share_a_batch() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        others = [rig.submit(value) for value in (1, 2, 3)]
        await asyncio.sleep(0)
        rig.engine.gate.set()
        answers = await asyncio.gather(first, *others)
        assert [answer.results for answer in answers] == [[1000000], [1], [4], [9]]

    assert run(test).engine.batches == [[1000], [1, 2, 3]]


def test_a_big_request_does_not_hold_up_a_small_one() -> None:
    async def test(rig: Rig) -> None:
        await rig.stall()
        big = rig.submit(*range(40))
        await asyncio.sleep(0)
        small = rig.submit(77)
        await asyncio.sleep(0)
        rig.engine.gate.set()
        await small
        assert not big.done()
        assert len((await big).results) == 40

    assert 77 in run(test).engine.batches[1]


def test_times_come_from_the_clock() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        second = rig.submit(2)
        await asyncio.sleep(0)
        rig.clock.now = 3.0
        rig.engine.gate.set()
        assert (await first).compute_s == 3.0
        answer = await second
        assert (answer.queue_s, answer.compute_s) == (3.0, 0.0)

    assert run(test).observer.waits == [0.0, 3.0]


def test_a_full_queue_refuses() -> None:
    async def test(rig: Rig) -> None:
        await rig.stall()
        rig.submit(*range(8))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="queue is full") as caught:
            await rig.submit(1, 2, 3)
        assert "(8 rows, 80 tokens)" in str(caught.value)
        assert caught.value.retry_after_s == 1, "nothing was measured yet"
        assert rig.observer.drops["rejected"] == 1

    run(test, max_queue_rows=10)


class Steps:
    """An engine that runs a batch for each `let_through`."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.entered: queue.SimpleQueue[list[Row]] = queue.SimpleQueue()

    def __call__(self, rows: Sequence[Row]) -> list[int]:
        self.entered.put(list(rows))
        assert self.permits.acquire(timeout=10)
        return [row.value**2 for row in rows]

    async def next_batch(self) -> list[Row]:
        return await asyncio.to_thread(self.entered.get, timeout=10)


async def measured(rig: Rig, steps: Steps) -> None:
    """Leave 4 rows of "busy" in the engine, 4 waiting, and 20 tokens a second measured."""
    tasks.append(rig.submit(*range(12), key="busy"))
    await steps.next_batch()
    rig.clock.now = 2.0  # 40 tokens took 2 s
    steps.permits.release()
    await steps.next_batch()


tasks: list[asyncio.Task[Any]] = []  # held, or they may be collected


def run_measured(test: Callable[[Rig], Awaitable[None]], **limits: float) -> Rig:
    """Run a test after `measured`."""
    steps = Steps()

    async def measure_then_test(rig: Rig) -> None:
        await measured(rig, steps)
        try:
            await test(rig)
        finally:
            steps.permits.release(100)

    return run(measure_then_test, steps, **limits)


def test_retry_after_is_the_wait_at_the_measured_speed() -> None:
    async def test(rig: Rig) -> None:
        rig.clock.now = 3.0
        with pytest.raises(OverloadedError, match=r"is full \(4 rows.* try again in 3 s") as caught:
            await rig.submit(*range(10))
        assert caught.value.retry_after_s == 3, "1 s for the running batch, 2 s for the waiting one"
        assert rig.observer.drops["rejected"] == 1

    run_measured(test, max_queue_rows=13)


def test_the_queue_is_bounded_by_the_time_to_work_it_off() -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(OverloadedError) as caught:
            await rig.submit(1, key="busy")  # 2 s for the running batch, 2 s for the waiting one
        assert caught.value.retry_after_s == 4
        assert str(caught.value) == (
            "the estimated wait is 4.00 s, but the server (DELTABERT_MAX_QUEUE_S) allows 3.50 s "
            "(4 rows, 40 tokens queued); try again in 4 s"
        )
        with pytest.raises(OverloadedError):
            rig.check_wait("busy", FAR)
        with pytest.raises(OverloadedError):
            async with rig.batcher.reserve(1, key="busy", deadline=FAR):
                pytest.fail("reserved")
        assert rig.observer.drops["rejected"] == 3
        rig.clock.now = 2.6
        rig.check_wait("busy", FAR)
        tasks.append(rig.submit(1, key="busy"))
        await asyncio.sleep(0)
        assert rig.batcher.queue.num_rows == 5

    run_measured(test, max_queue_s=3.5)


DEADLINE = r"the request's deadline \(X-Request-Timeout-Ms or DELTABERT_DEADLINE_S\) allows 3\.90 s"


def test_rows_that_cannot_begin_before_their_deadline_are_refused() -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(OverloadedError, match=DEADLINE) as caught:
            await rig.submit(1, key="busy", deadline=rig.clock.now + 3.9)
        assert "wait is 4.00 s, " in str(caught.value)
        with pytest.raises(DeadlineExceededError):  # which is no overload
            await rig.submit(1, key="busy", deadline=rig.clock.now - 1)
        rig.check_wait("busy", rig.clock.now + 4.1)

    run_measured(test)


def send(rig: Rig, reserved: bool, num_rows: int, deadline: float) -> asyncio.Task[Any]:
    """Send rows of "other", reserved first or not."""

    async def reserve() -> Any:
        async with rig.batcher.reserve(num_rows, key="other", deadline=deadline) as submit:
            return await submit([Row(value) for value in range(num_rows)])

    if reserved:
        return asyncio.create_task(reserve())
    return rig.submit(*range(num_rows), key="other", deadline=deadline)


@pytest.mark.parametrize("reserved", [False, True])
def test_rows_that_cannot_end_before_their_deadline_are_refused(
    reserved: bool,
) -> None:
    async def test(rig: Rig) -> None:
        rig.clock.now = 3.0  # 1 s for the running batch, 1.6 s for a round, 2.5 s for its rows
        with pytest.raises(OverloadedError, match=r"wait is 2\.60 s, .* allows 2\.50 s") as caught:
            await send(rig, reserved, 5, 3.0 + 5.0)
        assert caught.value.retry_after_s == 3
        assert rig.observer.drops == {"rejected": 1}
        tasks.append(send(rig, reserved, 5, 3.0 + 5.2))
        await asyncio.sleep(0)
        assert rig.batcher.queue.num_rows == 9

    run_measured(test)


@pytest.mark.parametrize("reserved", [False, True])
def test_rows_that_exceed_any_deadline_are_not_told_to_come_back(
    reserved: bool,
) -> None:
    async def test(rig: Rig) -> None:
        rig.clock.now = 3.0
        with pytest.raises(DeadlineTooShortError) as caught:
            await send(rig, reserved, 6, 3.0 + 2.9)
        assert str(caught.value) == (
            "6 rows with 60 tokens would take 3.00 s at the measured speed, but the request's "
            "deadline (X-Request-Timeout-Ms or DELTABERT_DEADLINE_S) leaves 2.90 s. Send fewer "
            "rows at once, or allow more time"
        )
        assert rig.observer.drops == {"rejected": 1}
        rig.clock.now = 30.0  # the measurement is too old by now
        tasks.append(send(rig, reserved, 6, 30.0 + 2.9))
        await asyncio.sleep(0)
        assert rig.batcher.queue.num_rows == 10

    run_measured(test)


def test_a_busy_task_does_not_shut_the_queue_for_others() -> None:
    async def test(rig: Rig) -> None:
        rig.clock.now = 2.5
        tasks.append(rig.submit(*range(40), key="busy"))  # 20 s more
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            rig.check_wait("busy", FAR)
        rig.check_wait("other", FAR)  # waits for the running batch and one round

    run_measured(test, max_queue_s=2.0 + QUANTUM_TOKENS / 20 + 0.1)


def test_a_task_that_fills_the_queue_does_not_shut_it_for_others() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        busy = [rig.submit(*range(25), key="busy") for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"is full \(100 rows"):
            await rig.submit(1, key="busy")
        other = rig.submit(7, key="other")
        async with rig.batcher.reserve(30, key="another", deadline=FAR) as submit:
            late = [rig.submit(1, key=f"late{number}") for number in range(9)]
            await asyncio.sleep(0)
            rig.engine.gate.set()
            assert len((await submit([Row(1, 1)] * 30)).results) == 30
        assert (await other).results == [49]
        await asyncio.gather(first, *busy, *late)

    run(test)


def test_nothing_is_refused_for_its_wait_before_a_batch_was_measured() -> None:
    async def test(rig: Rig) -> None:
        stalled = await rig.stall()
        waiting = rig.submit(*range(50))
        await asyncio.sleep(0)
        rig.clock.now = 100.0
        rig.check_wait(None, FAR)
        rig.engine.gate.set()
        await asyncio.gather(stalled, waiting)

    run(test, max_queue_s=0.001)


def test_the_queue_is_bounded_in_tokens_too_but_never_shut_when_empty() -> None:
    async def test(rig: Rig) -> None:
        answer = await rig.submit(*range(9))  # 90 tokens into an empty queue
        assert len(answer.results) == 9
        await rig.stall()
        rig.submit(*range(4))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=r"is full \(4 rows, 40 tokens\)"):
            await rig.submit(1, 2)

    run(test, max_queue_tokens=50)


def test_reserved_rows_count_as_queued() -> None:
    async def test(rig: Rig) -> None:
        reserve = rig.batcher.reserve
        async with reserve(7, deadline=FAR):
            with pytest.raises(OverloadedError):
                async with reserve(4, deadline=FAR):
                    pytest.fail("the queue was full")
            async with reserve(3, deadline=FAR):
                pass
        async with reserve(10, deadline=FAR) as submit:
            assert (await submit([Row(value) for value in range(10)])).results[9] == 81

    run(test, max_queue_rows=10)


def test_the_deadline_covers_the_time_before_the_queue() -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
            async with rig.batcher.reserve(7, deadline=0.05):
                await asyncio.sleep(30)
        async with rig.batcher.reserve(100, deadline=FAR):
            pass  # the queue is free again

    assert run(test).observer.drops == {"expired": 1}


@pytest.mark.parametrize("submitted", [False, True])
def test_a_cancelled_request_is_counted_once(submitted: bool) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()

        async def request() -> None:
            async with rig.batcher.reserve(1, deadline=FAR) as submit:
                if submitted:
                    await submit([Row(1)])
                await asyncio.sleep(30)

        gone = asyncio.create_task(request())
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        rig.engine.gate.set()
        await first

    assert run(test).observer.drops == {"cancelled": 1}


def test_a_stop_finishes_reserved_rows() -> None:
    async def test(rig: Rig) -> None:
        tokenized = asyncio.Event()

        async def request() -> list[int]:
            async with rig.batcher.reserve(1, deadline=FAR) as submit:
                await tokenized.wait()
                return (await submit([Row(3)])).results

        early = asyncio.create_task(request())
        await asyncio.sleep(0)
        stopping = asyncio.create_task(rig.batcher.stop(5.0))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError):
            await request()
        assert not stopping.done()
        tokenized.set()
        assert await early == [9]
        await stopping

    run(test)


def test_urgent_rows_pass_a_full_queue() -> None:
    async def test(rig: Rig) -> None:
        await rig.stall()
        rig.submit(*range(10))
        await asyncio.sleep(0)
        urgent = rig.submit(55, urgent=True)
        await asyncio.sleep(0)
        rig.engine.gate.set()
        assert (await urgent).results == [55**2]

    assert run(test, max_queue_rows=10).engine.batches[1][0] == 55


def test_a_request_ends_at_its_deadline_even_if_the_engine_is_stuck() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        with pytest.raises(DeadlineExceededError, match=r"within 0\.05 s"):
            await rig.submit(5, deadline=0.05)
        assert rig.batcher.queue.num_rows == 0
        rig.engine.gate.set()
        await first

    rig = run(test)
    assert rig.engine.batches == [[1000]], "an expired row reached the engine"
    assert rig.observer.drops == {"expired": 1}


def test_rows_that_expired_in_the_queue_are_not_computed() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        late = rig.submit(5, 6, deadline=50.0)
        kept = rig.submit(7)
        await asyncio.sleep(0)
        rig.clock.now = 50.0
        rig.engine.gate.set()
        with pytest.raises(DeadlineExceededError, match="within 50 s;"):
            await late
        assert (await kept).results == [49]
        await first

    assert run(test).engine.batches == [[1000], [7]]


def test_a_deadline_in_the_past_is_an_error_at_once() -> None:
    async def test(rig: Rig) -> None:
        rig.clock.now = 10.0
        with pytest.raises(DeadlineExceededError):
            await rig.submit(5, deadline=9.0)

    run(test)


def test_rows_of_a_cancelled_caller_are_not_computed() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        gone, kept = rig.submit(*range(10)), rig.submit(7)
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert rig.batcher.queue.num_rows == 1
        rig.engine.gate.set()
        await asyncio.gather(first, kept)

    rig = run(test)
    assert rig.engine.batches == [[1000], [7]]
    assert rig.observer.drops == {"cancelled": 1}


def test_a_caller_cancelled_while_its_row_runs_harms_no_other() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        first.cancel()
        kept = rig.submit(7)
        await asyncio.sleep(0)
        rig.engine.gate.set()
        assert (await kept).results == [49]

    run(test)


def test_a_failing_batch_is_run_again_request_by_request(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        good, bad, other = rig.submit(2), rig.submit(-1), rig.submit(3)
        await asyncio.sleep(0)
        rig.engine.gate.set()
        assert (await good).results == [4]
        assert (await other).results == [9]
        with pytest.raises(BatchFailedError, match="ValueError") as caught:
            await bad
        assert str(caught.value.__cause__) == "poison -1"
        await first
        assert (await rig.submit(5)).results == [25], "the loop must live on"

    rig = run(test)
    assert rig.engine.batches == [[1000], [2, -1, 3], [2], [-1], [3], [5]]
    assert rig.observer.drops == {"failed": 1}
    assert "poison -1" in caplog.text


def test_a_request_cancelled_meanwhile_is_not_run_again() -> None:
    begun: list[list[int]] = []
    left: list[Callable[[], object]] = []

    def leave_and_fail(rows: Sequence[Row]) -> list[int]:
        begun.append([row.value for row in rows])
        left[0]()
        raise ValueError("poison")

    async def test(rig: Rig) -> None:
        gone, bad = rig.submit(2), rig.submit(3)
        loop = asyncio.get_running_loop()
        left.append(lambda: loop.call_soon_threadsafe(gone.cancel))
        with pytest.raises(BatchFailedError):
            await bad
        assert gone.cancelled()

    run(test, run_batch=leave_and_fail)
    assert begun == [[2, 3], [3]]


def test_a_request_that_fails_takes_its_waiting_rows_along() -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(BatchFailedError):
            await rig.submit(1, -2, 3, 4, 5, 6)
        assert rig.batcher.queue.num_rows == 0

    assert run(test).engine.batches == [[1, -2, 3, 4]]


@pytest.mark.parametrize("returned", [[], [1, 2], None, 7])
def test_a_wrong_number_of_results_is_a_failure(returned: Any) -> None:
    async def test(rig: Rig) -> None:
        with pytest.raises(BatchFailedError):
            await rig.submit(1)

    run(test, run_batch=lambda _rows: returned)


def test_an_observer_that_fails_does_not_end_the_pool() -> None:
    async def test(rig: Rig) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        rig.observer.on_batch = fail  # type: ignore[method-assign, assignment]
        assert (await rig.submit(3)).results == [9]
        assert (await rig.submit(4)).results == [16]
        rig.batcher.check_alive()

    run(test)


def test_stop_finishes_accepted_requests_and_accepts_no_more() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        waiting = rig.submit(2)
        await asyncio.sleep(0)
        stopping = asyncio.create_task(rig.batcher.stop(5.0))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="shutting down"):
            await rig.submit(3)
        rig.engine.gate.set()
        await stopping
        assert (await first).results == [1000000]
        assert (await waiting).results == [4]

    run(test)


def test_stop_fails_requests_that_it_cannot_finish_in_time() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        waiting = rig.submit(2)
        await asyncio.sleep(0)
        started = time.monotonic()
        await rig.batcher.stop(0.05)
        assert time.monotonic() - started < 3.0
        for task in (first, waiting):
            with pytest.raises(NotReadyError, match="shutting down"):
                await task

    run(test)


def test_nothing_is_taken_before_the_start() -> None:
    async def main() -> None:
        limits = BatchLimits(1, 10, 1, 10)
        batcher: Batcher[Row, int] = Batcher(Parallelism(Engine()), limits, Observer())
        with pytest.raises(NotReadyError, match="starting"):
            await batcher.submit([Row(1)], deadline=FAR)
        await batcher.stop(0.0)

    asyncio.run(main())


def test_a_dead_worker_fails_everyone_and_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    def die(rows: Sequence[Row]) -> list[int]:
        raise SystemExit(1)

    async def test(rig: Rig) -> None:
        rig.batcher.check_alive()
        tasks = [rig.submit(*range(6)), rig.submit(1)]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, NotReadyError)
            assert "restarted" in str(result)
        with pytest.raises(NotReadyError):
            rig.batcher.check_alive()
        with pytest.raises(NotReadyError, match="restarted"):
            await rig.submit(1)

    with caplog.at_level(logging.CRITICAL):
        run(test, run_batch=die)
    assert "worker has died" in caplog.text


def test_a_loop_that_ends_by_a_bug_fails_everyone_too() -> None:
    async def test(rig: Rig) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        rig.batcher.queue.take = broken  # type: ignore[method-assign, assignment]
        with pytest.raises(NotReadyError):
            await rig.submit(1)
        with pytest.raises(NotReadyError):
            rig.batcher.check_alive()

    run(test)


def test_the_event_loop_is_free_while_a_batch_runs() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.stall()
        started = time.monotonic()
        for _ in range(10):
            await asyncio.sleep(0.001)
        assert time.monotonic() - started < 5.0
        rig.engine.gate.set()
        await first

    run(test)
