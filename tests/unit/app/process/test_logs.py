"""Log records as text and as JSON, with the id of the request, and a log that is not read."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from app.process.logs import (
    JsonFormatter,
    LogHandler,
    TextFormatter,
    add_request_id,
    configure_logging,
    request_id_var,
)


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    """Put back the changes of `configure_logging`."""
    root = logging.getLogger()
    names = ("app", "deltas", "uvicorn", "uvicorn.error", "uvicorn.access")
    loggers = [root, *map(logging.getLogger, names)]
    before = [(one, one.level, one.handlers[:], one.propagate) for one in loggers]
    yield
    for one, level, handlers, propagate in before:
        one.setLevel(level)
        one.handlers[:] = handlers
        one.propagate = propagate


def record(message: str = "answer %d", *args: object) -> logging.LogRecord:
    made = logging.LogRecord("app.x", logging.INFO, "x.py", 1, message, args or (42,), None)
    add_request_id(made)
    return made


def test_json_is_one_object_a_line() -> None:
    made = record()
    made.facts = {"rows": 3}
    line = JsonFormatter().format(made)
    assert "\n" not in line
    document = json.loads(line)
    assert document["message"] == "answer 42"
    assert (document["level"], document["logger"], document["rows"]) == ("info", "app.x", 3)
    assert datetime.fromisoformat(document["time"]).timestamp() == pytest.approx(
        made.created, abs=0.01
    )


def test_json_holds_the_traceback() -> None:
    made = record()
    try:
        raise ValueError("no")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: no" in json.loads(JsonFormatter().format(made))["exception"]


def test_the_request_id_is_that_of_the_context() -> None:
    assert vars(record())["request_id"] == "-"
    token = request_id_var.set("id-7")
    try:
        assert json.loads(JsonFormatter().format(record()))["request_id"] == "id-7"
    finally:
        request_id_var.reset(token)


@pytest.mark.usefixtures("_restored_logging")
def test_a_message_can_not_pass_for_another_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text", "info")
    logging.getLogger("app.test").info("odd: %s", "x\n2026-01-01 INFO - app: all is well\x1b[2J")
    assert capsys.readouterr().err.endswith("odd: x\\n2026-01-01 INFO - app: all is well\\x1b[2J\n")


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_configured_records_go_to_stderr(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format, "info")
    logging.getLogger("app.test").info("seen")
    logging.getLogger("app.test").debug("not seen")
    logging.getLogger("uvicorn.access").info("not seen")
    logging.getLogger("another").info("not seen")
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    if log_format == "json":
        assert json.loads(line)["message"] == "seen"
    else:
        assert line.endswith("INFO    - app.test: seen")


def read_all(descriptor: int) -> str:
    """All that a pipe holds now."""
    found = b""
    while select.select([descriptor], [], [], 0)[0]:
        found += os.read(descriptor, 2**20)
    return found.decode()


def test_a_log_that_is_not_read_delays_nothing_and_counts_its_losses() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 16384)
    handler = LogHandler()
    handler.setStream(os.fdopen(writing, "w"))
    handler.setFormatter(TextFormatter("%(message)s"))

    def log(text: str) -> None:
        handler.handle(logging.LogRecord("x", 20, "f", 1, text, None, None))

    log("first")
    started = time.monotonic()
    for number in range(200):
        log(f"{number} " + "x" * 200)
    log("long " + "x" * 100_000)
    assert time.monotonic() - started < 5, "each record has waited for the reader"
    first, *kept = read_all(reading).splitlines()
    assert first == "first"
    assert [line.partition(" ")[0] for line in kept[:-1]] == [str(n) for n in range(len(kept) - 1)]
    log("second")
    lost, second = read_all(reading).splitlines()[-2:]
    assert lost == f"lines lost because the log was not read: {201 - len(kept)}"
    assert second == "second"
    log("third \udc80\n" + "y" * 8000)
    assert read_all(reading) == "third \\udc80\\n" + "y" * 8000 + "\n"
    log("cut " + "z" * 100_000)
    assert read_all(reading).rstrip("z") == "cut "
    log("fourth")
    lost = "lines lost because the log was not read: 1"
    assert read_all(reading) == f"\n{lost}\nfourth\n"
    handler.stream.close()
    os.close(reading)


@pytest.mark.parametrize("style", [TextFormatter("%(message)s"), JsonFormatter()])
def test_no_record_moves_a_cursor_or_turns_its_text(style: logging.Formatter) -> None:
    """Messages and tracebacks may quote files and requests."""
    bad = "\x1b[2J\x9b\u202e\u200f"
    try:
        raise ValueError(bad)
    except ValueError:
        record = logging.LogRecord("x", 40, "f", 1, f"caf\u00e9 {bad}", None, sys.exc_info())
    text = style.format(record)
    assert "caf\u00e9" in text
    assert all(char.isprintable() for char in text.replace("\n", ""))
    if isinstance(style, JsonFormatter):
        assert json.loads(text)["message"] == f"caf\u00e9 {bad}"
