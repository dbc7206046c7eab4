"""What a process that serves needs beside the app: memory, threads, garbage.

`app.server` sees to it; `create_app` does when uvicorn calls it as a factory. One thing can't be
done that late, since OpenMP reads it when torch is loaded: `app.__main__` does it.

Logging: one record a line, as text or JSON, each with the id of the request it belongs to.

`configure_logging` is called by whoever owns the process (`app.server`, or `create_app` when
uvicorn calls it as a factory), never at import. Nothing in `app` logs the text of an input.
"""

from __future__ import annotations

import gc
import json
import logging
import logging.config
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TypeVar

from deltas import keep_compiled_products, keep_freed_memory

request_id_var: ContextVar[str] = ContextVar("request_id", default="-")


class RequestIdFilter(logging.Filter):
    """Puts the id of the current request on every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        record.request_id = request_id_var.get()
        return True


class TextFormatter(logging.Formatter):
    """A record as one line (a traceback follows on more), whatever its message quotes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line; a line break in the message can't begin what looks like another record."""
        if not record.message.isprintable():
            record.message = "".join(
                char if char.isprintable() else ascii(char)[1:-1] for char in record.message
            )
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what the caller passed as `extra={"facts": {...}}` joins it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
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
        return json.dumps(document, ensure_ascii=False, default=str)


def configure_logging(log_format: str, log_level: str) -> None:
    """Send our own and uvicorn's records to stderr.

    Args:
        log_format: "text" or "json".
        log_level: name of the least severe level.
    """
    text = "%(asctime)s %(levelname)-7s %(request_id)s %(name)s: %(message)s"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {
                "text": {"()": TextFormatter, "fmt": text},
                "json": {"()": JsonFormatter},
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": log_format,
                    "filters": ["request_id"],
                }
            },
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "app": {"level": log_level.upper()},
                "deltas": {"level": log_level.upper()},
                "uvicorn": {"handlers": [], "level": "WARNING", "propagate": True},
                "uvicorn.error": {"handlers": [], "level": "WARNING", "propagate": True},
                # `app.http.middleware` logs each request, without query strings.
                "uvicorn.access": {"handlers": [], "level": "ERROR", "propagate": False},
            },
        }
    )


B = TypeVar("B")


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


logger = logging.getLogger(__name__)

_GC_THRESHOLDS = 50_000, 20, 50
# The forward pass takes the GIL again after each of its hundreds of steps. Beside a busy event loop
# it took 2.9 times as long as alone with Python's 5 ms, and 2.2 times with this.
_SWITCH_INTERVAL_S = 0.0005


def prepare_process() -> None:
    """Before anything is loaded."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    keep_freed_memory()
    keep_compiled_products()
    # A single row with two texts is enough for the tokenizer to wake threads of its own, one a
    # core. They take longer than one does (74 to 114 us against 57), and the cores are torch's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def settle_process() -> None:
    """Once everything is loaded."""
    # What lives as long as the process need not be searched for garbage; and a body of a million
    # little lists must not have the loop search all of them, again and again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def warn_of_spinning() -> None:
    """Say what `app.__main__` would have done."""
    if os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
        logger.warning(
            "GOMP_SPINCOUNT is not set: OpenMP's threads may spin for milliseconds while they wait "
            "for each other, and slow the server down; set it to 10000, or start the server with "
            "python -m app"
        )
