"""Readiness: whether a prediction can be made, found out by making one.

Peers report health from a flag and stay green when their worker is dead. This check sends a row
through tokenizer, batcher and engine. It goes to the head of the queue, so that a full queue does
not look like a broken server, and its result is kept for a moment, so that probes are no load.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from app.batching.batcher import Batcher
from app.engine.engine import Engine, EngineRow, Outcome
from app.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DeltaUnavailableError,
    NotReadyError,
)

_KEEP_S = 1.0


class Readiness:
    """Makes a small prediction, at most once a second."""

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher[EngineRow, Outcome],
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._records = sorted(engine.store.records, key=lambda record: record.num_bytes)
        self._batcher = batcher
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = asyncio.Lock()
        self._checked_at = -math.inf
        self._outcome: float | str = ""

    async def check(self) -> float:
        """Milliseconds that a prediction took.

        Raises:
            NotReadyError: none could be made.
        """
        self._batcher.check_alive()
        async with self._lock:
            if self._clock() - self._checked_at >= _KEEP_S:
                self._outcome = await self._predict()
                self._checked_at = self._clock()
        if isinstance(self._outcome, str):
            raise NotReadyError(self._outcome)
        return self._outcome

    async def _predict(self) -> float | str:
        """The prediction's milliseconds, or what went wrong."""
        if not self._records:
            return "no deltas are served; the log of the start says why"
        # One that is loaded, if any: a file that went bad is not the whole server's trouble.
        loaded = (record for record in self._records if record in self._engine.cache)
        smallest = next(loaded, self._records[0])
        texts = self._engine.trial(smallest)
        started = self._clock()
        try:
            answer = await self._batcher.submit(
                self._engine.tokenize(smallest, [texts]),
                deadline=started + self._timeout_s,
                urgent=True,
            )
        except (BatchFailedError, DeadlineExceededError, NotReadyError) as error:
            return f"a prediction failed: {error}"
        (outcome,) = answer.results
        if isinstance(outcome, DeltaUnavailableError):
            return f"a prediction failed: {outcome}"
        if not all(map(math.isfinite, outcome)):
            return "a prediction gave NaN or infinite numbers"
        return round((self._clock() - started) * 1000, 3)
