"""Connections that are too large, too slow, too many or no HTTP, over real sockets."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from app.process.settings import Settings
from app.server import connection
from app.server.connection import ConnectionLimits
from app.server.server import _config, listen

Serve = Callable[..., int]
MakeApp = Callable[..., FastAPI]
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"inputs": "a good film"}'
PREDICT = (
    b"POST /predict/toy2 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n" % len(BODY)
)


@contextmanager
def served(app: FastAPI, settings: Settings) -> Iterator[int]:
    """The port of a server in a thread."""
    with listen(settings) as listener:
        server = uvicorn.Server(_config(app, settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture
def serve(make_app: MakeApp) -> Iterator[Serve]:
    """A function (**settings) -> port of a real server."""
    with ExitStack() as stack:

        def start(**changes: Any) -> int:
            app = make_app(port=0, **changes)
            return stack.enter_context(served(app, app.state.settings))

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[[int], socket.socket]]:
    """A function (port) -> socket, closed after the test."""
    with ExitStack() as stack:

        def connect(port: int) -> socket.socket:
            opened = socket.create_connection(("127.0.0.1", port), timeout=20)
            return stack.enter_context(opened)

        yield connect


Connect = Callable[[int], socket.socket]


def read_all(opened: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    received = b""
    with suppress(ConnectionError):
        while part := opened.recv(65536):
            received += part
    return received


def read_answer(opened: socket.socket) -> bytes:
    """One answer, whose connection stays open."""
    received = b""
    while not (whole := re.match(rb"(?s).*content-length: (\d+)\r\n.*?\r\n\r\n", received)) or (
        len(received) < whole.end() + int(whole[1])
    ):
        part = opened.recv(65536)
        assert part, received
        received += part
    return received


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened:
        with suppress(ConnectionError):  # the server may refuse before the end
            opened.sendall(request)
        return read_all(opened)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)]


def error_of(received: bytes, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, after checking the one form of all."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert statuses(head) == [status], received
    error: dict[str, Any] = json.loads(body)["error"]
    assert error["code"] == code
    assert b"content-type: application/json" in head
    assert f"x-request-id: {error['request_id']}".encode() in head
    assert b"connection: close" in head
    return error


def is_alive(port: int) -> bool:
    return statuses(ask(port, LIVE + b"Connection: close\r\n\r\n")) == [200]


HEADS = {
    "one line": LIVE + b"X-A: " + b"a" * 4096,
    "many lines": LIVE + b"".join(b"X-%06d: %s\r\n" % (i, b"a" * 100) for i in range(40)),
    "path": b"GET /" + b"a" * 4096,
    "name": LIVE + b"X" * 4096,
    "empty lines": b"\r\n" * 3000,
    "trailers": PREDICT.replace(b"Content-Length: 25", b"Transfer-Encoding: chunked")
    + b"\r\n19\r\n%s\r\n0\r\nX-A: " % BODY
    + b"a" * 4096,
    "chunk extension": PREDICT.replace(b"Content-Length: 25", b"Transfer-Encoding: chunked")
    + b"\r\n19;"
    + b"a" * 4096,
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_beyond_the_limit_is_a_431(serve: Serve, kind: str) -> None:
    port = serve(max_head_bytes=2048)
    error = error_of(ask(port, HEADS[kind]), 431, "head_too_large")
    assert error["message"] == (
        "request line and headers have more than 2,048 bytes. Send fewer headers, or raise "
        "DELTABERT_MAX_HEAD_BYTES"
    )
    assert is_alive(port)


def test_the_limit_of_a_head_is_exact_and_new_for_each_request(
    serve: Serve, connect: Connect
) -> None:
    port = serve(max_head_bytes=2048)
    largest = LIVE + b"X-A: %s\r\n\r\n"
    largest %= b"a" * (2048 - len(largest) + 2)
    opened = connect(port)
    for _ in range(3):
        opened.sendall(largest)
        assert statuses(read_answer(opened)) == [200]
    opened.sendall(largest.replace(b"X-A: ", b"X-A: a"))
    error_of(read_all(opened), 431, "head_too_large")


def test_an_endless_header_line_is_refused_early_and_slows_nothing(
    serve: Serve, connect: Connect
) -> None:
    port = serve()
    sent = 0
    with suppress(ConnectionError):
        opened = connect(port)
        opened.sendall(LIVE + b"X-A: ")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            sent += opened.send(b"a" * 65536)
    assert time.monotonic() < deadline
    started = time.monotonic()
    assert is_alive(port)
    assert time.monotonic() - started < 1


def test_a_client_that_sends_on_after_a_refusal_is_stopped(serve: Serve, connect: Connect) -> None:
    """The kernel's buffers and a bound of ours; a second of reading took gigabytes."""
    opened, sent = connect(serve()), 0
    opened.sendall(LIVE + b"X-A: ")
    started = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - started < 5:
            sent += opened.send(b"a" * 2**20)
    assert time.monotonic() - started < 5, "the connection is closed"
    assert sent < 32 * 2**20


def test_a_client_that_sends_its_whole_head_first_gets_the_answer(
    serve: Serve, connect: Connect
) -> None:
    opened = connect(serve())
    opened.sendall(LIVE + b"X-A: " + b"a" * 900_000 + b"\r\n\r\n")
    error_of(read_all(opened), 431, "head_too_large")


def test_the_rest_of_a_body_behind_its_answer_is_bounded(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LINGER_BODY_BYTES", 2**20)
    opened, sent = connect(serve(connection_timeout_s=1.0)), 0
    opened.sendall(PREDICT.replace(b"Content-Length: 25", b"Content-Length: 9999999999") + b"\r\n")
    assert statuses(read_answer(opened)) == [413]
    started = time.monotonic()
    with suppress(ConnectionError):
        while time.monotonic() - started < 8:
            sent += opened.send(b"a" * 2**20)
    assert time.monotonic() - started < 8, "the connection is closed"
    assert sent < 32 * 2**20


def test_a_large_body_is_no_large_head(serve: Serve, connect: Connect) -> None:
    port = serve(max_head_bytes=1024)
    padded = BODY + b" " * 300_000
    head = PREDICT.replace(b"Content-Length: 25", b"Content-Length: %d" % len(padded))
    chunked = PREDICT.replace(b"Content-Length: 25", b"Transfer-Encoding: chunked") + b"\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in padded[:3000]) + b"0\r\n\r\n"
    opened = connect(port)
    for request in (head + b"\r\n" + padded, chunked + chunks, head + b"\r\n" + padded):
        opened.sendall(request)
        assert statuses(read_answer(opened)) == [200]


@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [(b"", False), (b"\r\n", False), (LIVE, True), (b"GE", True)],
    ids=["silent", "empty line", "half a head", "half a method"],
)
def test_a_head_that_does_not_come_in_time_ends_its_connection(
    serve: Serve, connect: Connect, sent: bytes, is_answered: bool
) -> None:
    opened = connect(serve(connection_timeout_s=0.3))
    started = time.monotonic()
    opened.sendall(sent)
    received = read_all(opened)
    assert 0.2 < time.monotonic() - started < 3
    if is_answered:
        error = error_of(received, 408, "head_timeout")
        assert "did not arrive within 0.3 s" in error["message"]
    else:
        assert received == b""


def test_a_head_that_trickles_gets_no_more_time(serve: Serve, connect: Connect) -> None:
    port = serve(connection_timeout_s=0.3)
    opened = connect(port)
    opened.sendall(LIVE + b"\r\n")
    assert statuses(read_answer(opened)) == [200]
    opened.sendall(LIVE + b"X-A: ")
    opened.settimeout(0.05)
    received, deadline = b"", time.monotonic() + 5
    while not received and time.monotonic() < deadline:
        opened.sendall(b"a")
        with suppress(TimeoutError):
            received = opened.recv(65536)
    assert statuses(received) == [408]


def test_an_idle_connection_is_closed(serve: Serve, connect: Connect) -> None:
    opened = connect(serve(keep_alive_s=1))
    opened.sendall(LIVE + b"\r\n")
    assert statuses(read_answer(opened)) == [200]
    started = time.monotonic()
    assert read_all(opened) == b""
    assert 0.5 < time.monotonic() - started < 5


def test_a_slow_answer_outlasts_the_limits(serve: Serve, connect: Connect, gate: Any) -> None:
    opened = connect(serve(connection_timeout_s=0.2, keep_alive_s=1))
    gate.close()
    opened.sendall(PREDICT + b"\r\n" + BODY)
    time.sleep(1.2)
    gate.is_open.set()
    assert statuses(read_answer(opened)) == [200]


def test_a_new_connection_replaces_the_one_that_waited_longest(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    port = serve(max_connections=4)
    silent = [connect(port) for _ in range(12)]
    assert all(is_alive(port) for _ in range(3))
    for opened in silent[:8]:
        assert read_all(opened) == b""
    lines = [record for record in caplog.records if "MAX_CONNECTIONS" in record.getMessage()]
    assert len(lines) == 1
    assert "all 4 connections are in use" in lines[0].getMessage()


def test_health_is_answered_when_all_connections_have_requests(
    serve: Serve, connect: Connect, gate: Any
) -> None:
    port = serve(max_connections=2)
    gate.close()
    busy = [connect(port) for _ in range(2)]
    for opened in busy:
        opened.sendall(PREDICT + b"\r\n" + BODY)
    assert gate.entered.wait(10)
    assert is_alive(port)
    error = error_of(ask(port, b"GET /tasks HTTP/1.1\r\n\r\n"), 503, "too_many_connections")
    assert "all 2 connections have a request" in error["message"]
    gate.is_open.set()
    for opened in busy:
        assert statuses(read_answer(opened)) == [200]
    late = ask(port, b"GET /tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(late) == [200]


def test_the_number_of_connections_fits_the_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    limits = ConnectionLimits(
        max_head_bytes=1024, timeout_s=1.0, max_connections=500, on_error=print
    )
    assert 1 <= limits.max_connections < 48
    assert "connections instead of 500 (DELTABERT_MAX_CONNECTIONS)" in caplog.text


def test_a_client_that_does_not_read_is_closed(serve: Serve, connect: Connect) -> None:
    port = serve(connection_timeout_s=0.3, keep_alive_s=1)
    opened = socket.socket()
    with opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", port))
        opened.settimeout(0.2)
        with suppress(OSError):
            for _ in range(200):
                opened.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                opened.sendall(b"GET / HTTP/1.1\r\n")
            except TimeoutError:
                pass
            except OSError:
                return
            time.sleep(0.05)
    pytest.fail("the connection is still open")


def test_garbage_behind_requests_is_one_line(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    port = serve()
    caplog.set_level(logging.DEBUG, logger="app")
    request = PREDICT + b"\r\n" + BODY
    received = ask(port, request * 3 + b"GARBAGE\r\n\r\n" + request)
    assert statuses(received) == [200, 200, 200]
    assert not [record for record in caplog.records if record.exc_info]
    lines = [record for record in caplog.records if record.name == "app.server.connection"]
    assert [record.levelname for record in lines] == ["DEBUG"]


def test_a_client_that_leaves_its_pipelined_requests_is_no_error(
    serve: Serve, caplog: pytest.LogCaptureFixture, gate: Any
) -> None:
    port = serve()
    gate.close()
    with socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall((PREDICT + b"\r\n" + BODY) * 3)
        assert gate.entered.wait(10)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    time.sleep(0.2)
    gate.is_open.set()
    assert is_alive(port)
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        PREDICT.replace(b"Content-Length: 25", b"Transfer-Encoding: chunked") + b"\r\nxyz\r\n",
    ],
)
def test_what_is_no_request_gets_an_error_of_the_one_form(
    serve: Serve, request_bytes: bytes
) -> None:
    error = error_of(ask(serve(), request_bytes), 400, "malformed_request")
    assert error["message"] == "this is no valid HTTP/1.1 request; the connection is closed"


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("upgrade", [UPGRADE, UPGRADE.replace(b"h2c", b"websocket")])
@pytest.mark.parametrize("part", [1, 1000], ids=["by bytes", "at once"])
def test_an_offer_of_another_protocol_is_ignored(
    serve: Serve, connect: Connect, upgrade: bytes, part: int
) -> None:
    opened = connect(serve())
    request = PREDICT + upgrade + b"\r\n" + BODY
    get = b"GET /tasks HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Connection: close\r\n\r\n"
    for start in range(0, len(request), part):
        opened.sendall(request[start : start + part])
    received = read_answer(opened)
    assert statuses(received) == [200]
    assert b'"task":"toy2"' in received
    opened.sendall(get)
    assert statuses(read_all(opened)) == [200]


def test_a_client_that_has_finished_sending_is_answered(
    serve: Serve, connect: Connect, gate: Any
) -> None:
    opened = connect(serve())
    gate.close()
    opened.sendall(PREDICT + b"\r\n" + BODY)
    opened.shutdown(socket.SHUT_WR)
    time.sleep(0.5)
    gate.is_open.set()
    *interim, last = statuses(read_all(opened))
    assert last == 200
    assert set(interim) <= {100}


def test_a_client_that_has_gone_is_noticed(
    serve: Serve, caplog: pytest.LogCaptureFixture, gate: Any
) -> None:
    caplog.set_level(logging.INFO, logger="app")
    port = serve()
    gate.close()
    with socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(PREDICT + b"\r\n" + BODY)
        assert gate.entered.wait(10)
    deadline = time.monotonic() + 5
    while "toy2" not in caplog.text and "499" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    gate.is_open.set()
    assert "/predict/{task} 499" in caplog.text
