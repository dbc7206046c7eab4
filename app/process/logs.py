"""Writes the log: records as text or JSON on stderr, with the id of their request.

No module of `app` logs the text of an input. Tested by `tests/unit/app/process/test_logs.py`.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger(__name__)
request_id_var: ContextVar[str] = ContextVar("request_id", default="-")

_READER_S = 0.1  # patience with the reader of the log


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
