"""Laws of keys for any headers, paths, files and traffic."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RateLimitedError, TooLargeError
from app.keys.key import Key, KeysError, digest_of, parse_keys
from app.keys.keyring import Keyring
from app.keys.middleware import OPEN_PATHS, KeyMiddleware
from app.keys.usage import Usage
from app.pipeline import Trace

pytestmark = pytest.mark.law

SECRET = b"dbk_a-secret-that-is-known"
KEYS = f'a = {{sha256 = "{digest_of(SECRET).hex()}", scopes = ["predict"], tasks = ["a*"]}}\n'
KEYRING = Keyring(KEYS, None, 100)

paths = st.one_of(
    st.sampled_from([*OPEN_PATHS, "/predict/a", "/predict/b", "/deltas/b/x", "/metrics", "/tasks"]),
    st.text("/.ab%\x00é", max_size=12).map(lambda text: f"/{text}"),
    st.text(max_size=30),
)
methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "LOAD"])
values = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda value: b"Bearer " + value),
    st.sampled_from([b"Bearer", b"Bearer ", b"bearer " + SECRET[:-1], SECRET.upper(), b"Basic x"]),
)
headers = st.lists(
    st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"cookie", b""]), values), max_size=4
)


def ask(method: str, path: str, given_headers: list[tuple[bytes, bytes]]) -> tuple[int, str, Any]:
    """Send a request through the middleware; returns status, error code and caller."""
    sent: list[Any] = []
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path}
    scope |= {"headers": given_headers, "state": {"trace": Trace(), "request_id": "id"}}
    scope["state"]["write_error"] = lambda: None

    async def app(inner: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the body is read")

    middleware = KeyMiddleware(app, keyring=KEYRING)
    asyncio.run(middleware(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    code = json.loads(body)["error"]["code"] if body else ""
    return sent[0]["status"], code, scope["state"].get("caller")


@given(methods, paths, headers)
def test_garbage_is_no_key(method: str, path: str, given_headers: Any) -> None:
    status, code, caller = ask(method, path, given_headers)
    if path in OPEN_PATHS and method in ("GET", "HEAD", "OPTIONS"):
        assert (status, caller) == (200, KEYRING.anonymous)
    else:
        assert (status, code, caller) == (401, "unauthorized", None)


@given(methods, paths)
def test_a_prediction_key_reads_and_predicts_its_own_tasks_alone(method: str, path: str) -> None:
    status, code, caller = ask(method, path, [(b"x-api-key", SECRET)])
    changes = method not in ("GET", "HEAD", "OPTIONS")
    is_prediction = method == "POST" and (path == "/predict" or path.startswith("/predict/"))
    if changes and not is_prediction:
        assert (status, code) == (403, "forbidden")
    if path.startswith("/predict/") and path.split("/")[2][:1] != "a":
        assert (status, code) == (403, "forbidden")
    assert (status, caller is not None) in ((200, True), (403, False))


@given(st.text(max_size=200))
def test_any_text_is_keys_or_one_sentence(text: str) -> None:
    try:
        assert all(isinstance(key, Key) for key in parse_keys(text).values())
    except KeysError as error:
        problem = str(error)
    else:
        problem = ""
    assert "\n" not in problem


requests = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20_000)), max_size=40)
per_minute = st.integers(1, 5000)


class Traffic:
    """The requests of one key, on a clock in milliseconds."""

    def __init__(self, **limits: Any) -> None:
        key = Key(name="k", sha256="0" * 64, scopes=frozenset(), tasks=(), **limits)
        self.now_ms = 10**6
        self.admitted: list[tuple[int, int]] = []
        self._usage = Usage(key, 100, clock=lambda: self.now_ms * 1_000_000)

    async def wait_ms(self, num_rows: int) -> int | None:
        """Send a request; returns its wait, 0 if it is admitted, None if it never is."""
        try:
            async with self._usage.admit(num_rows):
                self.admitted.append((self.now_ms, num_rows))
                return 0
        except RateLimitedError as error:
            return round(error.wait_s * 1000)
        except TooLargeError:
            return None

    async def send_until_admitted(self, num_rows: int) -> bool:
        """Wait exactly as told; returns False for a request that is never admitted."""
        wait_ms = await self.wait_ms(num_rows)
        if wait_ms:
            self.now_ms += wait_ms - 1
            assert await self.wait_ms(num_rows), "admitted before the wait is over"
            self.now_ms += 1
            assert await self.wait_ms(num_rows) == 0, "refused after the wait"
        return wait_ms is not None


def burst_of(rate: int, burst_s: float) -> int:
    return max(1, math.floor(rate * burst_s / 60))


def check_windows(admitted: list[tuple[int, int]], rate: int, burst: int) -> None:
    """Check that no window of time has more than the rate and the burst."""
    for first, (began_ms, _) in enumerate(admitted):
        total = 0
        for at_ms, amount in admitted[first:]:
            total += amount
            assert total <= burst + rate * (at_ms - began_ms) / 60_000 + 1e-6


@given(requests, per_minute, per_minute, st.floats(1, 120))
def test_waits_are_exact_and_no_window_has_more_than_rate_and_burst(
    sent: list[tuple[int, int]], rows_per_minute: int, requests_per_minute: int, burst_s: float
) -> None:
    traffic = Traffic(
        rows_per_minute=rows_per_minute, requests_per_minute=requests_per_minute, burst_s=burst_s
    )
    burst = burst_of(rows_per_minute, burst_s)

    async def run() -> None:
        for num_rows, pause_ms in sent:
            traffic.now_ms += pause_ms
            assert await traffic.send_until_admitted(num_rows) is (num_rows <= burst)

    asyncio.run(run())
    check_windows(traffic.admitted, rows_per_minute, burst)
    ones = [(at_ms, 1) for at_ms, _ in traffic.admitted]
    check_windows(ones, requests_per_minute, burst_of(requests_per_minute, burst_s))
