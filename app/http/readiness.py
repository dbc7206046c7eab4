"""Checks if the server can predict, by making a prediction.

Other servers report their health from a flag and stay green when their worker is dead. This check
sends a row through tokenizer, batcher and engine. The row goes to the head of the queue, so that a
full queue does not look like a broken server. A result is kept for a second, so that probes are no
load; a failed batch ends it. Tested by tests/http/test_health.py and tests/http/test_faults.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from operator import attrgetter

from app.batching.batcher import Batcher
from app.engine.engine import Engine, EngineRow, Outcome
from app.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DeltaUnavailableError,
    NotReadyError,
)
from deltas import Record

_KEEP_S = 1.0
_WATCH_S = 1.0
_OUTDATED_S = 120.0  # probes come far more often
_FAILING_S = 30.0  # predictions that fail for so long will not succeed again in this process


class Readiness:
    """Makes a small prediction, at most once a second."""

    def __init__(
        self, engine: Engine, batcher: Batcher[EngineRow, Outcome], timeout_s: float
    ) -> None:
        self._engine = engine
        self._records: list[Record] | None = self._smallest_first()
        self._batcher = batcher
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._checked_at = -math.inf
        self._outcome: float | str = ""

    @property
    def last_outcome(self) -> float:
        """1 if the last check succeeded and batches can still run, else 0; NaN if it is long ago.

        Otherwise the failure of the only probe of a day would be an alarm for the rest of the day.
        """
        if time.monotonic() - self._checked_at > _OUTDATED_S:
            return math.nan
        return float(self._batcher.is_alive and not isinstance(self._outcome, str))

    def forget_records(self) -> None:
        """Make the next prediction anew, and choose its delta, because the store has changed."""
        self._records = None
        self._checked_at = min(self._checked_at, time.monotonic() - _KEEP_S)

    async def check(self) -> float:
        """Return the milliseconds that a prediction took.

        Raises:
            NotReadyError: no prediction could be made.
        """
        self._batcher.check_alive()
        async with self._lock:
            is_outdated = self._batcher.failing_s > 0 and not isinstance(self._outcome, str)
            if is_outdated or time.monotonic() - self._checked_at >= _KEEP_S:
                self._outcome = await self._predict()
                self._checked_at = time.monotonic()
        if isinstance(self._outcome, str):
            raise NotReadyError(self._outcome)
        return self._outcome

    def _smallest_first(self) -> list[Record]:
        return sorted(self._engine.store.records, key=attrgetter("num_bytes"))

    async def watch(self) -> None:
        """Give up the batcher if batches fail for good, so that the server ends.

        A failure is followed by checks, because the rows of one client may be those that fail. A
        prediction that succeeds ends the matter. The last check must have failed, too: while the
        process stood still, the rows of that client alone may have failed for long.
        """
        while True:
            await self._batcher.wait_for_failure()
            with suppress(Exception):  # whatever it is, it is no success
                await self.check()
            if self._batcher.failing_s >= _FAILING_S and isinstance(self._outcome, str):
                break
            await asyncio.sleep(_WATCH_S)
        self._batcher.give_up(f"all predictions have failed for {_FAILING_S:g} s")

    async def _predict(self) -> float | str:
        """Make a prediction; returns its milliseconds, or the reason why it failed."""
        if self._records is None:
            self._records = self._smallest_first()
        if not self._records:
            return "no deltas are served; the log of the start says why"
        # A resident delta comes first, because one bad file does not break the whole server.
        resident = (record for record in self._records if record in self._engine.cache)
        smallest = next(resident, self._records[0])
        started = time.monotonic()
        rows = self._engine.tokenize(smallest, [self._engine.trial(smallest)])
        try:
            answer = await self._batcher.submit(
                rows, deadline=started + self._timeout_s, urgent=True
            )
        except (BatchFailedError, DeadlineExceededError, NotReadyError) as error:
            return f"a prediction failed: {error}"
        (outcome,) = answer.results
        if isinstance(outcome, DeltaUnavailableError):
            return f"a prediction failed: {outcome}"
        if not all(map(math.isfinite, outcome)):
            return "a prediction gave NaN or infinite numbers"
        return round((time.monotonic() - started) * 1000, 3)
