"""Streams to a real server: larger than any buffer, read slowly, left in the middle."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.http.server_process import Server, call, opener, url_of

pytestmark = pytest.mark.slow
PAD = "x" * 20_000
FEW_BYTES = 24 * 2**20  # buffers of sockets and of the server
MAX_GROWTH = 32 * 2**20


class Stream:
    """A stream whose rows are sent by a thread, so that its answers can be read meanwhile."""

    def __init__(self, url: str, rows: Iterator[bytes]) -> None:
        address = urlsplit(url)
        assert address.hostname
        self.socket = socket.create_connection((address.hostname, address.port or 80), timeout=60)
        self.num_bytes = 0
        self._rows = rows
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self.socket.close()

    def _send(self) -> None:
        head = b"POST /predict/toy2 HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n"
        try:
            self.socket.sendall(head + b"Content-Type: application/x-ndjson\r\n\r\n")
            for row in self._rows:
                self.socket.sendall(b"%x\r\n%s\r\n" % (len(row), row))
                self.num_bytes += len(row)
            self.socket.sendall(b"0\r\n\r\n")
        except OSError:
            return  # the test has closed it, or the server has

    def answers(self) -> Generator[dict[str, Any]]:
        with closing(http.client.HTTPResponse(self.socket, method="POST")) as answer:
            answer.begin()
            assert answer.status == 200
            for line in answer:
                yield json.loads(line)


def padded(number: int) -> Iterator[bytes]:
    for n in range(number):
        yield json.dumps({"id": n, "text": "a good film", "pad": PAD}).encode() + b"\n"


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def rows_answered(url: str) -> float:
    with opener.open(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("deltabert_rows_total{")
    )


def settle(read: Callable[[], float], quiet_s: float = 1.0) -> float:
    """Wait until a number stays the same."""
    deadline = time.monotonic() + 60
    last, since = read(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        assert time.monotonic() < deadline, "it never stays the same"
        time.sleep(0.05)
        if (now := read()) != last:
            last, since = now, time.monotonic()
    return last


def test_a_stream_of_any_size_takes_little_memory_and_keeps_its_order(
    run_server: Callable[..., Any],
) -> None:
    with run_server() as server:
        url = url_of(server)
        with Stream(url, padded(100)) as stream:
            assert sum(1 for _ in stream.answers()) == 100
        before = resident_bytes(server)
        with Stream(url, padded(3500)) as stream:
            for number, row in enumerate(stream.answers()):
                assert (row["row"], row["id"]) == (number, number)
            assert number == 3499
        assert stream.num_bytes > 2 * MAX_GROWTH
        assert resident_bytes(server) - before < MAX_GROWTH


def test_a_client_that_does_not_read_holds_up_its_own_stream_alone(
    run_server: Callable[..., Any],
) -> None:
    text = json.dumps({"id": "y" * 20_000, "text": "good"}).encode() + b"\n"
    with (
        run_server(DELTABERT_CONNECTION_TIMEOUT_S="300") as server,
        Stream(url_of(server), (text for _ in range(3000))) as stream,
    ):
        settle(lambda: float(stream.num_bytes))
        assert stream.num_bytes < FEW_BYTES  # of 60 MB
        status, answer = call(f"{url_of(server)}/predict/toy2", {"inputs": "a good film"})
        assert (status, len(answer["predictions"])) == (200, 1)
        answered = rows_answered(url_of(server))
        assert sum(1 for _ in stream.answers()) == 3000 > answered


def test_the_work_stops_when_the_client_leaves(run_server: Callable[..., Any]) -> None:
    with run_server() as server:
        url = url_of(server)
        with Stream(url, padded(1_000_000)) as stream:
            answers = stream.answers()
            for _ in range(10):
                next(answers)
            answers.close()
        server.wait_for("the client of a stream has gone", 60)
        assert settle(lambda: rows_answered(url)) < 100_000
