"""Parts of HTTP/1.1 that few clients use: trailers, codings of transfer, old versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import FastAPI

from tests.http.admin_key import KEY, KEYS
from tests.http.test_connections import BODY, LIVE, PREDICT, ask, error_of, served, statuses

MakeApp = Callable[..., FastAPI]
CHUNKED = PREDICT.replace(b"Content-Length: 25", b"Transfer-Encoding: chunked")
CHUNKED += b"Connection: close\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)


@pytest.fixture(scope="module")
def ports(make_app: MakeApp) -> Iterator[Callable[..., int]]:
    """A function (**settings) -> port of a real server, one for all tests with equal settings."""
    known: dict[str, int] = {}
    with ExitStack() as stack:

        def port(**changes: Any) -> int:
            if repr(changes) not in known:
                app = make_app(port=0, **changes)
                known[repr(changes)] = stack.enter_context(served(app, app.state.settings))
            return known[repr(changes)]

        yield port


@pytest.mark.parametrize(
    "trailer",
    [b"X-Request-ID: chosen", b"X-Request-Timeout-Ms: bad", b"Content-Type: text/plain"],
)
def test_trailers_change_nothing(ports: Callable[..., int], trailer: bytes) -> None:
    received = ask(ports(), CHUNKED + trailer + b"\r\n\r\n")
    assert statuses(received) == [200]
    assert b"x-request-id: chosen" not in received


@pytest.mark.parametrize(
    "trailer", [b"Authorization: Bearer " + KEY.encode(), b"X-API-Key: " + KEY.encode()]
)
def test_a_trailer_is_no_key(ports: Callable[..., int], trailer: bytes) -> None:
    request = CHUNKED.replace(b"/predict/toy2", b"/deltas/reload") + trailer + b"\r\n\r\n"
    error_of(ask(ports(keys=KEYS), request), 401, "unauthorized")


def test_trailers_are_dropped_for_each_request_of_a_connection(ports: Callable[..., int]) -> None:
    kept = CHUNKED.replace(b"Connection: close\r\n", b"") + b"X-Request-ID: first\r\n\r\n"
    last = CHUNKED.replace(b"Host: x", b"Host: x\r\nX-Request-ID: second") + b"\r\n"
    received = ask(ports(), kept + kept + last)
    assert statuses(received) == [200, 200, 200]
    assert b"x-request-id: first" not in received
    assert received.count(b"x-request-id: second") == 1


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"deflate,chunked", b"identity, chunked"])
def test_another_coding_of_the_transfer_is_named(ports: Callable[..., int], coding: bytes) -> None:
    request = CHUNKED.replace(b"Encoding: chunked", b"Encoding: " + coding) + b"\r\n"
    error = error_of(ask(ports(), request), 415, "unsupported_body")
    assert repr(coding.decode()) in error["message"]


@pytest.mark.parametrize(("version", "expected"), [(b"1.0", [200]), (b"1.1", [100, 200])])
def test_an_old_client_gets_no_interim_answer(
    ports: Callable[..., int], version: bytes, expected: list[int]
) -> None:
    head = PREDICT.replace(b"HTTP/1.1", b"HTTP/" + version) + b"Expect: 100-continue\r\n"
    assert statuses(ask(ports(), head + b"Connection: close\r\n\r\n" + BODY)) == expected


def test_of_many_requests_at_once_the_first_ones_are_answered(ports: Callable[..., int]) -> None:
    """One read of 256 kB may hold 7,000 requests, which took memory and stopped the event loop."""
    received = ask(ports(), (LIVE + b"\r\n") * 6000)
    answered = statuses(received)
    assert set(answered) == {200}
    assert 2 <= len(answered) <= 40
    assert received.count(b"connection: close") == 1
    assert b"connection: close" in received.rpartition(b"HTTP/1.1")[2]
    some = (LIVE + b"\r\n") * 20 + LIVE + b"Connection: close\r\n\r\n"
    assert statuses(ask(ports(), some)) == [200] * 21
