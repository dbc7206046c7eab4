"""Logging: one record a line, as text or JSON, each with the id of the request it belongs to.

`configure_logging` is called by whoever owns the process (`app.server`, or `create_app` when
uvicorn calls it as a factory), never at import. Nothing in `app` logs the text of an input.
"""

from __future__ import annotations

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

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
                # `app.edge` logs each request, without query strings.
                "uvicorn.access": {"handlers": [], "level": "ERROR", "propagate": False},
            },
        }
    )
