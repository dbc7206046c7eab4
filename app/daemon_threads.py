"""A few threads for work beside everything else, which never hold up an exit.

An executor would do, but the interpreter waits at exit until its threads have done everything that
is queued: a file that hangs would keep a server from stopping. These threads are daemons.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_Work = tuple[Future[Any], Callable[[Any], Any], Any]
_Inbox = SimpleQueue[_Work | None]


class DaemonThreads:
    """Runs what it is given, in order; its threads end with it."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._inbox: _Inbox = SimpleQueue()
        for number in range(num_threads):
            thread = threading.Thread(
                target=_serve, args=(self._inbox,), name=f"{name}-{number}", daemon=True
            )
            thread.start()
        # Threads that held this object would keep it, and themselves, alive.
        weakref.finalize(self, _end, self._inbox, num_threads)

    def submit(self, function: Callable[[A], B], argument: A) -> Future[B]:
        """Have a function called; the future gets what it returns or raises."""
        future: Future[B] = Future()
        self._inbox.put((future, function, argument))
        return future


def _serve(inbox: _Inbox) -> None:
    while (work := inbox.get()) is not None:
        future, function, argument = work
        try:
            future.set_result(function(argument))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            future.set_exception(error)
        del work, future, function, argument  # or they would live until the next one comes


def _end(inbox: _Inbox, num_threads: int) -> None:
    for _ in range(num_threads):
        inbox.put(None)
