"""Daemon threads: results, errors, order; and that they hold up neither an exit nor memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref

import pytest

from app.daemon_threads import DaemonThreads

HANG = """
import threading, time
from app.daemon_threads import DaemonThreads

started = threading.Event()

def hang(_):
    started.set()
    time.sleep(60)

threads = DaemonThreads(1, "test")
for number in range(3):
    threads.submit(hang, number)
assert started.wait(30)
"""


def test_results_errors_and_order() -> None:
    threads = DaemonThreads(1, "test")
    seen: list[int] = []

    def work(number: int) -> int:
        seen.append(number)
        if number == 2:
            raise SystemExit(2)
        return number**2

    futures = [threads.submit(work, number) for number in range(4)]
    assert [futures[number].result(10) for number in (0, 1, 3)] == [0, 1, 9]
    with pytest.raises(SystemExit):
        futures[2].result(10)
    assert seen == [0, 1, 2, 3]


def test_as_many_at_once_as_there_are_threads() -> None:
    threads, both = DaemonThreads(2, "test"), threading.Barrier(2, timeout=10)
    for future in [threads.submit(lambda _: both.wait(), None) for _ in range(2)]:
        future.result(10)


def test_what_hangs_does_not_hold_up_an_exit() -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", HANG], check=True, timeout=50)
    assert time.monotonic() - started < 40


def test_threads_end_with_their_owner_and_keep_nothing() -> None:
    class Argument:
        pass

    threads, argument = DaemonThreads(2, "ending"), Argument()
    gone = weakref.ref(argument)
    threads.submit(id, argument).result(10)
    del argument
    wait_until(lambda: gone() is None)
    del threads
    wait_until(lambda: not any(t.name.startswith("ending") for t in threading.enumerate()))


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_threads_that_hang_are_replaced() -> None:
    threads = DaemonThreads(1, "test", hangs_s=0.05)
    is_open = threading.Event()
    stuck = [threads.submit(lambda _: is_open.wait(30), None)]
    for _ in range(3):
        time.sleep(0.1)
        assert threads.submit(lambda number: number + 1, 1).result(10) == 2
        stuck.append(threads.submit(lambda _: is_open.wait(30), None))
    assert not any(future.done() for future in stuck)
    is_open.set()
    assert all(future.result(10) for future in stuck)


def test_work_does_not_add_threads() -> None:
    threads = DaemonThreads(2, "test")
    before = threading.active_count()
    assert sum(threads.submit(lambda number: number, n).result(10) for n in range(50)) == 1225
    assert threading.active_count() == before
