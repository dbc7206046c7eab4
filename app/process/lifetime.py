"""Sets up the process that serves, and ends it: memory, threads, signals.

`app.server` calls these functions, or `app.main.create_app` if uvicorn calls it as a factory. One
more setting is needed before torch is loaded, because OpenMP reads it then: see `app.__main__`.
Tested by `tests/unit/app/process/test_lifetime.py`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

logger = logging.getLogger(__name__)

# Giving back 75 MB and getting them again takes 30 ms of CPU time: 0.1 % of two busy cores.
_GIVE_BACK_S = 30.0
_GC_THRESHOLDS = 50_000, 20, 50
# The forward pass takes the GIL (global interpreter lock) again after each of its hundreds of
# steps. Beside a busy event loop it took 2.9 times as long as alone with Python's interval of 5 ms,
# and 2.2 times with this one.
_SWITCH_INTERVAL_S = 0.0005

# Mapped code of a file without private changes, in the form of /proc/PID/smaps (proc(5)).
_CODE = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r-xp .*/.*$(?:\n[A-Z]\w+:.*$)*?\nAnonymous: +0 kB$", re.MULTILINE
)

B = TypeVar("B")


@contextmanager
def memory_given_back(every_s: float = _GIVE_BACK_S) -> Iterator[None]:
    """Return freed memory to the system at regular intervals, until the block ends.

    The C library keeps the memory of the largest batches (decision 0010), and the holes between
    long-lived objects grow with every new mixture of batches (decision 0118).
    """
    from deltas.hardware import give_back_freed_memory

    done = threading.Event()

    def serve() -> None:
        while not done.wait(every_s):
            give_back_freed_memory()

    thread = threading.Thread(target=serve, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def stop_at_once_on_signals() -> None:
    """Have SIGINT and SIGTERM end the process at once, until the server has its own handlers.

    As the first process of a container, it would not get these signals without a handler.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_at_once)


def stop_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle a signal: log a line and leave with status 0, since a requested stop is no failure."""
    with suppress(Exception):  # the signal may have interrupted the writing of another line
        logger.warning("%s: stopped at once", signal.Signals(number).name)
    leave(0)


def leave(status: int) -> NoReturn:
    """End the process without the interpreter's own ending.

    The interpreter does not wait for daemon threads at its end. The next one of them that wants the
    GIL is unwound, and frames of C++ or Rust on its stack turn that into SIGABRT: a forward pass, a
    load of a delta, the tokenizer. The other threads are waited for, even if they hang. Nothing
    here needs that ending: log lines are written out one by one, and files are closed.
    """
    os._exit(status)


def run_in_own_thread(function: Callable[[], B]) -> B:
    """Run a function in a thread that ends with it, and return its result.

    Work with torch before the first batch belongs here, because OpenMP keeps a team of threads for
    every thread that has asked for one. If all teams together have more threads than there are
    cores, waiting ones sleep at once, and a forward pass of one row takes 10 ms instead of 5.

    Raises:
        Exception: any exception of the function.
    """
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function).result()


def prepare_process() -> None:
    """Set up the process before anything is loaded."""
    # Imported here, since it loads torch, and the first line of the log comes before that.
    from deltas import keep_compiled_products, keep_freed_memory

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    keep_freed_memory()
    keep_compiled_products()
    # A single row with two texts makes the tokenizer wake a thread for each core. They take longer
    # than one thread (74 to 114 us against 57), and the cores belong to torch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def settle_process() -> None:
    """Set up the process once everything is loaded."""
    # Objects that live as long as the process are never garbage. Without this, a body of a million
    # small lists has the event loop search all of them again and again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    unmap_code()


def unmap_code() -> None:
    """Unmap the code of all libraries, of which the start has used far more than serving does.

    A call maps the pages that it needs again, from the system's cache of files (decision 0147).
    Changes in memory, as debuggers make them, would be lost; code with changes stays mapped.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        mappings = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system may hide it
        return
    for first, end in _CODE.findall(mappings):
        begin, num_bytes = int(first, 16), int(end, 16) - int(first, 16)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(num_bytes), mmap.MADV_DONTNEED)


def warn_of_factory_start() -> None:
    """Log what a start by uvicorn's factory lacks beside `python -m app`."""
    logger.info(
        "started by another program: there are no limits of connections, heads and slow clients, "
        "and a second signal does not end the process. Start the server with python -m app, or "
        "put a proxy with these limits before it"
    )
    if os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
        logger.warning(
            "GOMP_SPINCOUNT is not set: OpenMP's threads may busy-wait for milliseconds and slow "
            "the server down. Set it to 10000, or start the server with python -m app"
        )
