"""Log records as text and as JSON, with the id of the request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from app.logs import JsonFormatter, RequestIdFilter, configure_logging, request_id_var


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    """What `configure_logging` changes is put back."""
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
    RequestIdFilter().filter(made)
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
