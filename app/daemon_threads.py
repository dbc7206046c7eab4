"""A few threads for work beside everything else, which never hold up an exit.

An executor would do, but the interpreter waits at exit until its threads have done everything that
is queued: a file that hangs would keep a server from stopping. These threads are daemons. And while
all of them hang, others take their place, up to a limit.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_Work = tuple[Future[Any], Callable[[Any], Any], Any]
_Inbox = SimpleQueue[_Work | None]
_Busy = dict[int, float]  # threads at work, and since when

_MOST = 32  # threads that hang, at most, before work waits for them
_HANGS_S = 1.0


class DaemonThreads:
    """Runs what it is given, in order; its threads end with it.

    Args:
        num_threads: as many as work at a time, those that hang aside.
        name: of the threads.
        hangs_s: a call that takes longer does not count as work.
    """

    def __init__(self, num_threads: int, name: str, hangs_s: float = _HANGS_S) -> None:
        self._inbox: _Inbox = SimpleQueue()
        self._busy: _Busy = {}
        self._name = name
        self._num_threads = num_threads
        self._hangs_s = hangs_s
        self._threads: list[threading.Thread] = []
        for _ in range(num_threads):
            self._start_one()
        # Threads that held this object would keep it, and themselves, alive.
        weakref.finalize(self, _end, self._inbox, self._threads)

    def submit(self, function: Callable[[A], B], argument: A) -> Future[B]:
        """Have a function called; the future gets what it returns or raises."""
        future: Future[B] = Future()
        self._inbox.put((future, function, argument))
        self.replace_hanging()
        return future

    def replace_hanging(self) -> None:
        """Start another thread if one hangs; for those who wait for work behind it."""
        now = time.monotonic()
        hanging = sum(now - since > self._hangs_s for since in list(self._busy.values()))
        if len(self._threads) - hanging < self._num_threads and len(self._threads) < _MOST:
            self._start_one()

    def _start_one(self) -> None:
        thread = threading.Thread(
            target=_serve,
            args=(self._inbox, self._busy),
            name=f"{self._name}-{len(self._threads)}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()


def _serve(inbox: _Inbox, busy: _Busy) -> None:
    own = threading.get_ident()
    while (work := inbox.get()) is not None:
        future, function, argument = work
        busy[own] = time.monotonic()
        try:
            future.set_result(function(argument))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            future.set_exception(error)
        busy.pop(own, None)
        del work, future, function, argument  # or they would live until the next one comes


def _end(inbox: _Inbox, threads: list[threading.Thread]) -> None:
    for _ in threads:
        inbox.put(None)
