"""One thread that runs one function, for an event loop that must never block.

An executor of one thread would do, but the interpreter waits for those at exit: a forward pass that
hangs would keep a server from stopping. This thread is a daemon.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

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


def run_in_own_thread(function: Callable[[], B]) -> B:
    """Run a function in a thread that ends with it, and wait for that.

    For what uses torch before the batches do: OpenMP keeps a team of threads for every thread that
    ever asked for one. Once there are more than processors it puts waiting ones to sleep at once,
    and a forward pass of one row takes 10 ms instead of 5. A thread that has ended has no team.

    Raises:
        Exception: whatever the function raised.
    """
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


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
