"""Rates and shares of a key: exact waiting times, and refusals that cost nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from app.errors import RateLimitedError, TooLargeError
from app.keys.key import Key
from app.keys.usage import Usage


class Clock:
    """A clock that tests set, in seconds."""

    def __init__(self) -> None:
        self.now = 12345.0

    def __call__(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def usage(clock: Clock, **limits: Any) -> Usage:
    key = Key(name="team", sha256="0" * 64, scopes=frozenset(), tasks=(), **limits)
    return Usage(key, 1000, clock=clock)


def spend(used: Usage, num_rows: int) -> float:
    """Send rows that are answered at once; returns the seconds to wait if they are refused."""

    async def send() -> None:
        async with used.admit(num_rows):
            pass

    try:
        asyncio.run(send())
    except RateLimitedError as error:
        return error.wait_s
    return 0.0


def test_without_limits_all_is_admitted(clock: Clock) -> None:
    used = usage(clock)
    assert [spend(used, 10**6) for _ in range(10)] == [0.0] * 10


def test_rows_are_the_cost_and_the_wait_is_exact(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=60, burst_s=32)
    assert spend(used, 32) == 0
    assert spend(used, 5) == 5
    clock.now += 4.999
    assert spend(used, 5) == pytest.approx(0.001)
    clock.now += 0.001
    assert spend(used, 5) == 0
    assert spend(used, 1) == 1


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=60, requests_per_minute=60, burst_s=10)
    assert spend(used, 10) == 0
    for _ in range(100):
        assert spend(used, 4) == 4
    clock.now += 4
    assert spend(used, 4) == 0, "100 refusals have used up neither rows nor requests"


def test_the_longer_of_two_waits_is_told(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=600, requests_per_minute=6, burst_s=10)
    assert spend(used, 1) == 0
    assert spend(used, 1) == 10, "one request in 10 s"
    clock.now += 10
    assert spend(used, 100) == 0
    clock.now += 5
    assert spend(used, 100) == 5, "5 s for the request, and for 50 of the rows"


def test_an_unused_rate_is_saved_up_for_the_burst_alone(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=60, burst_s=5)
    clock.now += 3600
    assert spend(used, 5) == 0
    assert spend(used, 1) == 1


@pytest.mark.parametrize("num_rows", [6, 10**9])
def test_more_rows_than_can_ever_come_at_once_need_no_wait(clock: Clock, num_rows: int) -> None:
    used = usage(clock, rows_per_minute=60, burst_s=5)
    with pytest.raises(TooLargeError, match=r"rows at once for this key: .*limit 5.*burst_s"):
        spend(used, num_rows)
    assert spend(used, 5) == 0, "the refusal has cost nothing"


def test_the_message_names_key_limit_and_wait(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=6000, burst_s=1)

    async def send() -> None:
        for _ in range(2):
            async with used.admit(100):
                pass

    with pytest.raises(RateLimitedError) as caught:
        asyncio.run(send())
    assert str(caught.value) == "the key 'team' allows 6,000 rows a minute; try again in 1 s"
    assert caught.value.retry_after_s == 1


def test_a_share_counts_rows_until_they_are_answered(clock: Clock) -> None:
    used = usage(clock, queue_share=0.1, rows_per_minute=6000)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(used.admit(60))
            with pytest.raises(RateLimitedError, match="60 rows without an answer, and may have"):
                await stack.enter_async_context(used.admit(41))
            await stack.enter_async_context(used.admit(40))
        async with used.admit(100):
            pass
        with pytest.raises(TooLargeError, match="limit 100"):
            await AsyncExitStack().enter_async_context(used.admit(101))

    asyncio.run(run())


def test_rows_of_failed_requests_leave_the_share(clock: Clock) -> None:
    used = usage(clock, queue_share=0.1)

    async def run() -> None:
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                async with used.admit(100):
                    raise error
        async with used.admit(100):
            pass

    asyncio.run(run())


def test_the_rows_of_a_stream_count_as_no_request(clock: Clock) -> None:
    used = usage(clock, rows_per_minute=60, requests_per_minute=60, burst_s=2)

    async def send(num_rows: int, num_requests: int) -> None:
        async with used.admit(num_rows, num_requests=num_requests):
            pass

    asyncio.run(send(0, 1))  # the stream
    asyncio.run(send(1, 0))
    asyncio.run(send(1, 0))
    with pytest.raises(RateLimitedError, match="60 rows a minute"):
        asyncio.run(send(1, 0))
    asyncio.run(send(0, 1))
    with pytest.raises(RateLimitedError, match="60 requests a minute"):
        asyncio.run(send(0, 1))


def test_the_most_rows_at_once(clock: Clock) -> None:
    assert usage(clock).max_rows == float("inf")
    assert usage(clock, rows_per_minute=60, burst_s=20).max_rows == 20
    assert usage(clock, rows_per_minute=60, burst_s=20, queue_share=0.01).max_rows == 10
