"""Sets up the process that serves, and ends it: logging, memory, threads, signals.

`app.server` calls these functions, or `app.main.create_app` if uvicorn calls it as a factory. One
more setting is needed before torch is loaded, because OpenMP reads it then: see `app.__main__`.
No module of `app` logs the text of an input.
"""

from __future__ import annotations

import gc
import json
import logging
import logging.config
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NoReturn, TypeVar

logger = logging.getLogger(__name__)
request_id_var: ContextVar[str] = ContextVar("request_id", default="-")

# Giving back 75 MB and getting them again takes 30 ms of CPU time: 0.1 % of two busy cores.
_GIVE_BACK_S = 30.0
_GC_THRESHOLDS = 50_000, 20, 50
_READER_S = 0.1  # patience with the reader of the log
# The forward pass takes the GIL (global interpreter lock) again after each of its hundreds of
# steps. Beside a busy event loop it took 2.9 times as long as alone with Python's interval of 5 ms,
# and 2.2 times with this one.
_SWITCH_INTERVAL_S = 0.0005

B = TypeVar("B")


def add_request_id(record: logging.LogRecord) -> bool:
    """Put the id of the current request on a record; returns True, so that none is dropped."""
    record.request_id = request_id_var.get()
    return True


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _json_escaped(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


class TextFormatter(logging.Formatter):
    """Writes a record as one line, followed by a traceback if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, escaped so that no message can look like a second record."""
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the traceback, whose message may quote a file or a request."""
        return "\n".join(map(_escaped, super().formatException(ei).split("\n")))


class JsonFormatter(logging.Formatter):
    """Writes a record as a JSON object, with the members of `extra={"facts": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        line = json.dumps(document, ensure_ascii=False, default=str)
        return line if line.isprintable() else "".join(map(_json_escaped, line))


class LogHandler(logging.StreamHandler[Any]):
    """Writes records to stderr, and loses them if the other end of a pipe is no longer read.

    A full pipe would stop the event loop, and with it every request. The first record waits
    `_READER_S` for the reader; those after it wait no more, until the pipe has space again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_lost = 0
        self._is_cut = False  # the pipe holds the beginning of a record alone

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as lost."""
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError):  # no file: a test's stream, or a closed one
            super().emit(record)
            return
        try:
            self.flush()
            if self._num_lost and self._is_writable(descriptor):
                lost = f"lines lost because the log was not read: {self._num_lost}\n"
                if self._write(descriptor, "\n" * self._is_cut + lost):
                    self._num_lost, self._is_cut = 0, False
            if self._num_lost or not self._write(descriptor, self.format(record) + "\n"):
                self._num_lost += 1
        except Exception:  # noqa: BLE001 - no failure of the log may end a request
            self.handleError(record)

    def _write(self, descriptor: int, text: str) -> bool:
        """Write text; tell whether all of it was written."""
        content = text.encode(errors="backslashreplace")
        # If a pipe has space at all, it has space for this number of bytes.
        for start in range(0, len(content), select.PIPE_BUF):
            if not self._is_writable(descriptor):
                self._is_cut = self._is_cut or start > 0
                return False
            os.write(descriptor, content[start : start + select.PIPE_BUF])
        return True

    def _is_writable(self, descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        return bool(poll.poll(0 if self._num_lost else 1000 * _READER_S))


def configure_logging(log_format: str, log_level: str) -> None:
    """Send the records of the app and of uvicorn to stderr.

    Args:
        log_format: "text" or "json".
        log_level: name of the least severe level.
    """
    text = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"
    stderr = {"()": LogHandler, "formatter": log_format, "filters": ["request_id"]}
    ours = {"level": log_level.upper()}
    uvicorns = {"handlers": [], "level": "WARNING", "propagate": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": lambda: add_request_id}},
            "formatters": {
                "text": {"()": TextFormatter, "fmt": text},
                "json": {"()": JsonFormatter},
            },
            "handlers": {"stderr": stderr},
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "app": ours,
                "deltas": ours,
                "uvicorn": uvicorns,
                "uvicorn.error": uvicorns,
                # `app.http.middleware` logs each request, without query strings.
                "uvicorn.access": {"handlers": [], "level": "ERROR", "propagate": False},
            },
        }
    )


@contextmanager
def logged(step: str) -> Iterator[None]:
    """Log a step of the start, and its seconds, when it is done."""
    started = time.perf_counter()
    yield
    logger.info("%s in %.1f s", step, time.perf_counter() - started)


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
