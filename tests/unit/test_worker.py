"""The worker thread: order, errors, death, and a thread that never holds up an exit."""

from __future__ import annotations

import asyncio
import threading

import pytest

from app.worker import Worker, WorkerDiedError, run_in_own_thread


def call_all(worker: Worker[int, int], *arguments: int) -> list[int | BaseException]:
    async def run() -> list[int | BaseException]:
        return await asyncio.gather(*map(worker.call, arguments), return_exceptions=True)

    return asyncio.run(run())


def test_runs_calls_in_order_in_one_other_thread() -> None:
    seen: list[tuple[int, str]] = []

    def double(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * 2

    worker = Worker(double, name="doubler")
    assert call_all(worker, 1, 2, 3) == [2, 4, 6]
    assert seen == [(1, "doubler"), (2, "doubler"), (3, "doubler")]
    worker.stop()
    worker.join(5.0)
    assert not worker.is_alive


@pytest.mark.parametrize("error", [ValueError("no"), StopIteration(), asyncio.CancelledError()])
def test_errors_reach_the_caller_and_the_thread_lives(error: BaseException) -> None:
    def fail(number: int) -> int:
        if number == 1:
            raise error
        return number

    worker = Worker(fail, name="failing")
    failed = call_all(worker, 1)[0]
    assert isinstance(failed, Exception)
    if isinstance(error, Exception):
        assert call_all(worker, 2) == [2]
    worker.stop()


def test_a_thread_told_to_end_is_dead_for_all_callers() -> None:
    def end(_number: int) -> int:
        raise SystemExit(3)

    worker = Worker(end, name="ending")
    (first,) = call_all(worker, 1)
    assert isinstance(first, WorkerDiedError)
    worker.join(5.0)
    assert not worker.is_alive
    (second,) = call_all(worker, 2)
    assert isinstance(second, WorkerDiedError)


def test_does_not_keep_the_process_alive() -> None:
    never = threading.Event()
    worker: Worker[int, bool] = Worker(lambda _: never.wait(), name="hanging")

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.call(0), 0.05)

    asyncio.run(give_up())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "hanging"]
    assert thread.daemon
    never.set()  # its late result meets a closed loop, which must not be an error
    worker.stop()
    worker.join(5.0)
    assert not worker.is_alive


def test_a_thread_of_its_own_has_ended_when_its_result_is_there() -> None:
    thread = run_in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_errors_of_a_thread_of_its_own_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_own_thread(lambda: 1 // 0)
