"""Counts what a key uses: its rate of requests and rows, and its share of the queue.

The rates are leaky buckets by GCRA (generic cell rate algorithm) of `pyrate_limiter`, one number
each. The numbers belong to this process: several servers count separately. Only the event loop
calls these functions. Read `app.keys.keyring` next.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.errors import RateLimitedError, TooLargeError
from app.keys.key import Key

if TYPE_CHECKING:
    from pyrate_limiter import Rate

_MINUTE_MS = 60_000
_SHARE_RETRY_S = 1.0  # an estimate: the rows of a key leave the queue with its answers


class Bucket:
    """One rate, and the state that GCRA keeps for it.

    Args:
        what: things that are counted, in the plural.
        per_minute: their number in a minute, on average.
        burst_s: seconds for which an unused rate is saved up.
    """

    def __init__(self, what: str, per_minute: int, burst_s: float) -> None:
        # Imported here, since a server without rates does not need it.
        from pyrate_limiter import GCRA, Rate

        burst = max(1, math.floor(per_minute * burst_s / 60))
        self.what = what
        self.rate: Rate = Rate(per_minute, _MINUTE_MS, burst)
        self._rates = [self.rate]
        self._algorithm = GCRA()
        self._state = self._algorithm.initial(self._rates)
        self._next_state = self._state

    def try_out(self, weight: int, now_ms: int) -> int:
        """Return the milliseconds until `weight` is allowed, and 0 if it is now; spend nothing."""
        self._next_state, decision = self._algorithm.step(self._rates, self._state, now_ms, weight)
        return 0 if decision.allowed else max(1, decision.retry_after_ms or 0)

    def spend(self) -> None:
        """Spend what was tried out last, which must have been allowed."""
        self._state = self._next_state


class Usage:
    """The rates of a key and its rows without an answer.

    Args:
        key: the key with its limits.
        max_queue_rows: most rows in the queue, of which the key may have a share.
        clock: source of the time in nanoseconds.
    """

    def __init__(
        self, key: Key, max_queue_rows: int, *, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.limits = limits_of(key)
        self._name = key.name
        self._clock = clock
        self._rows = self._requests = None
        if key.rows_per_minute is not None:
            self._rows = Bucket("rows", key.rows_per_minute, key.burst_s)
        if key.requests_per_minute is not None:
            self._requests = Bucket("requests", key.requests_per_minute, key.burst_s)
        self._max_held: int | None = None
        if key.queue_share is not None:
            self._max_held = max(1, math.floor(key.queue_share * max_queue_rows))
        self._num_held = 0

    @asynccontextmanager
    async def admit(self, num_rows: int, *, num_requests: int = 1) -> AsyncIterator[None]:
        """Count the rows of a request until the block ends, or refuse them, which costs nothing.

        A stream counts as one request, and its rows are counted part by part, as none.

        Raises:
            RateLimitedError: the key's rate or its share of the queue is used up.
            TooLargeError: the key never allows this number of rows at once.
        """
        self._check_share(num_rows)
        self._spend(num_rows, num_requests)
        self._num_held += num_rows
        try:
            yield
        finally:
            self._num_held -= num_rows

    @property
    def max_rows(self) -> float:
        """The most rows that are allowed at once; infinite without limits."""
        burst = math.inf if self._rows is None else self._rows.rate.burst
        return min(burst, math.inf if self._max_held is None else self._max_held)

    def _check_share(self, num_rows: int) -> None:
        allowed = self._max_held
        if allowed is None:
            return
        if num_rows > allowed:
            raise TooLargeError(
                "rows in one request of this key", num_rows, allowed, "queue_share of the key"
            )
        if self._num_held + num_rows > allowed:
            raise RateLimitedError(
                f"the key {self._name!r} has {self._num_held:,} rows without an answer, and may "
                f"have {allowed:,}",
                _SHARE_RETRY_S,
            )

    def _spend(self, num_rows: int, num_requests: int) -> None:
        """Spend requests and rows, both or neither."""
        now_ms = self._clock() // 1_000_000
        asked = [
            (bucket, weight)
            for bucket, weight in ((self._rows, num_rows), (self._requests, num_requests))
            if bucket is not None and weight
        ]
        wait_ms, used_up = 0, None
        for bucket, weight in asked:
            if weight > bucket.rate.burst:
                raise TooLargeError(
                    f"{bucket.what} at once for this key",
                    weight,
                    bucket.rate.burst,
                    f"{bucket.what}_per_minute or burst_s of the key",
                )
            bucket_ms = bucket.try_out(weight, now_ms)
            if bucket_ms > wait_ms:
                wait_ms, used_up = bucket_ms, bucket
        if used_up is not None:
            raise RateLimitedError(
                f"the key {self._name!r} allows {used_up.rate.limit:,} {used_up.what} a minute",
                wait_ms / 1000,
            )
        for bucket, _ in asked:
            bucket.spend()


def limits_of(key: Key) -> tuple[object, ...]:
    """Return the facts of a key by which its use is counted, to see if they have changed."""
    return key.requests_per_minute, key.rows_per_minute, key.burst_s, key.queue_share
