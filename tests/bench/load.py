"""A load tool for the HTTP server, made to cost little: raw keep-alive connections on one loop.

    python -m tests.bench.load URL BODIES --connections 64 --seconds 10 [--rate N]

BODIES is a file with one JSON body a line, each for POST /predict/<task> or /predict: {"path": ...,
"rows": ..., "tokens": ..., "body": {...}}. Without --rate each connection sends its next request
when it has its answer; with it requests are sent at fixed times, whether answers come or not.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, NamedTuple
from urllib.parse import urlsplit

_PROBE_EVERY_S = 0.1


@dataclass
class Tally:
    """The answers to a load."""

    statuses: Counter[int] = field(default_factory=Counter)
    rows: int = 0
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    live_seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0


class Request(NamedTuple):
    """One request: bytes to send, and what it asks for."""

    content: bytes
    rows: int
    tokens: int


class Response(NamedTuple):
    """An answer: status, head in lower case, and body."""

    status: int
    headers: bytes
    body: bytes


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def was_closed(self) -> bool:
        """Tell whether the other side has closed the connection after the last answer."""
        return self._streams is not None and self._streams[0].at_eof()

    async def ask(self, request: bytes) -> Response:
        """Send a request; send it again if the connection was closed while it was idle."""
        if self._streams is not None:
            try:
                return await self.ask_once(request)
            except (OSError, asyncio.IncompleteReadError):
                self.close()  # the server closes connections that were idle for a while
        return await self.ask_once(request)

    async def ask_once(self, request: bytes) -> Response:
        """Send a request on the open connection, or on a new one.

        Raises:
            OSError: there is no connection.
            asyncio.IncompleteReadError: the connection was closed before the answer's end.
        """
        await self.send(request)
        assert self._streams is not None
        reader, _ = self._streams
        head = await reader.readuntil(b"\r\n\r\n")
        headers = head.lower()
        start = headers.index(b"content-length:") + 15
        body = await reader.readexactly(int(headers[start : headers.index(b"\r\n", start)]))
        return Response(int(head[9:12]), headers, body)

    async def send(self, request: bytes) -> None:
        """Send a request and do not wait for its answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        self._streams[1].write(request)

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def reset(self) -> None:
        """Close the connection as a process that dies does: the server learns of it at once.

        After `close`, a server cannot tell a client that has left from one that still reads.
        """
        if self._streams is not None:
            socket = self._streams[1].get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


def encode_requests(path: Path, host: str) -> list[Request]:
    """Each line of the file as bytes to send."""
    requests = []
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        body = json.dumps(item["body"]).encode()
        head = (
            f"POST {item['path']} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(Request(head.encode() + body, item["rows"], item["tokens"]))
    return requests


async def one_request(connection: Connection, request: Request, tally: Tally) -> None:
    """Ask, and note how it went."""
    started = time.perf_counter()
    status, headers, _ = await connection.ask(request.content)
    tally.statuses[status] += 1
    if status == 200:
        tally.rows += request.rows
        tally.tokens += request.tokens
        tally.seconds.append(time.perf_counter() - started)
    elif status == 429 and b"retry-after:" not in headers:
        tally.without_retry_after += 1


async def closed_loop(
    host: str, port: int, requests: Iterator[Request], until: float, tally: Tally
) -> None:
    """One connection that asks again as soon as it was answered."""
    connection = Connection(host, port)
    while time.perf_counter() < until:
        await one_request(connection, next(requests), tally)
    connection.close()


async def open_loop(
    address: tuple[str, int],
    requests: Iterator[Request],
    rate: float,
    until: float,
    tally: Tally,
) -> None:
    """Requests at fixed times, on as many connections as it takes."""
    idle: list[Connection] = []
    tasks: set[asyncio.Task[None]] = set()

    async def send(request: Request) -> None:
        connection = idle.pop() if idle else Connection(*address)
        try:
            await one_request(connection, request, tally)
        except (OSError, asyncio.IncompleteReadError):
            tally.statuses[0] += 1
        else:
            idle.append(connection)

    due = time.perf_counter()
    while due < until:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(send(next(requests)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        due += 1 / rate
    await asyncio.gather(*tasks)


async def watch_liveness(host: str, port: int, tally: Tally) -> None:
    """Time /health/live all the while."""
    connection = Connection(host, port)
    request = f"GET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    try:
        while True:
            started = time.perf_counter()
            await connection.ask(request)
            tally.live_seconds.append(time.perf_counter() - started)
            await asyncio.sleep(_PROBE_EVERY_S)
    finally:
        connection.close()


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Send the load; returns what came back."""
    url = urlsplit(options.url)
    host, port = url.hostname or "127.0.0.1", url.port or 80
    requests = itertools.cycle(encode_requests(options.bodies, host))
    tally = Tally()
    watching = asyncio.create_task(watch_liveness(host, port, tally))
    started = time.perf_counter()
    until = started + options.seconds
    if options.rate:
        await open_loop((host, port), requests, options.rate, until, tally)
    else:
        connections = range(options.connections)
        await asyncio.gather(
            *(closed_loop(host, port, requests, until, tally) for _ in connections)
        )
    seconds = time.perf_counter() - started
    watching.cancel()
    in_order = sorted(tally.seconds) or [0.0]
    every = {"every_ms": [round(1000 * seconds, 3) for seconds in in_order]}
    return (every if options.every else {}) | {
        "rows_per_s": round(tally.rows / seconds, 1),
        "tokens_per_s": round(tally.tokens / seconds),
        "requests_per_s": round(sum(tally.statuses.values()) / seconds, 1),
        "p50_ms": round(1000 * statistics.median(in_order), 3),
        "p99_ms": round(1000 * percentile(in_order, 0.99), 3),
        "live_p50_ms": round(1000 * statistics.median(tally.live_seconds), 2),
        "live_max_ms": round(1000 * max(tally.live_seconds), 2),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "without_retry_after": tally.without_retry_after,
        "seconds": round(seconds, 2),
    }


def percentile(in_order: Sequence[float], share: float) -> float:
    """The value below which a share of increasing values lies."""
    return in_order[int(share * (len(in_order) - 1))]


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: closed loop")
    parser.add_argument("--every", action="store_true", help="print every answer's time, too")
    sys.stdout.write(json.dumps(asyncio.run(run(parser.parse_args()))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
