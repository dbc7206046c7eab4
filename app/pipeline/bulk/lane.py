"""Runs rows of streams on the server's engine without a wait for the requests of others.

All streams share the queue's lane `BACKGROUND`, whose rows run when nothing else waits. A request
that comes while they run has to wait for their batch. So there is one batch of them at a time, and
it is short: about `BATCH_S`, at the speed of the last ones. The rest of a stream's rows wait here,
and then in the client. Read `app.batching.queue` next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from app.batching.batcher import Batcher
from app.batching.queue import BACKGROUND
from app.engine.engine import EngineRow, Outcome
from app.errors import BatchFailedError

BATCH_S = 0.012
_FIRST_TOKENS = 128  # in a batch while the speed is not known
_LEAST_TOKENS, _MOST_TOKENS = 32, 2048
_MEMORY = 0.8  # weight of the past in the average of tokens per second
_DEADLINE_S = 3600.0  # the server may be busy for long

RowOutcome = Outcome | BatchFailedError


class BackgroundLane:
    """Runs the rows of all streams, one short batch at a time.

    Args:
        batcher: the server's batcher.

    Attributes:
        batch_tokens: most tokens of the next batch.
    """

    def __init__(self, batcher: Batcher[EngineRow, Outcome]) -> None:
        self._batcher = batcher
        self._turn = asyncio.Lock()
        self._tokens_per_s: float | None = None
        self.batch_tokens = _FIRST_TOKENS

    async def logits(self, rows: Sequence[EngineRow]) -> list[RowOutcome]:
        """Return the logits of rows, or an error in the place of a row that has none.

        Raises:
            NotReadyError: the server is stopping.
        """
        outcomes: list[RowOutcome] = []
        while len(outcomes) < len(rows):
            async with self._turn:  # streams take turns, batch by batch
                batch = list(self._next(rows[len(outcomes) :]))
                outcomes += await self._submit(batch)
        return outcomes

    def _next(self, rows: Sequence[EngineRow]) -> Iterator[EngineRow]:
        """Yield the rows of the next batch, at least one."""
        num_tokens = 0
        for row in rows:
            num_tokens += row.num_tokens
            if num_tokens > max(self.batch_tokens, row.num_tokens):
                return
            yield row

    async def _submit(self, batch: Sequence[EngineRow]) -> list[RowOutcome]:
        """Run a batch; if the engine raises, run each row alone, so that one spoils no others."""
        deadline = time.monotonic() + _DEADLINE_S
        try:
            answer = await self._batcher.submit(batch, key=BACKGROUND, deadline=deadline)
        except BatchFailedError as error:
            if len(batch) == 1:
                return [error]
            return [outcome for row in batch for outcome in await self._submit([row])]
        began = min(run.began_at for run in answer.runs)
        ended = max(run.ended_at for run in answer.runs)
        self._learn(sum(row.num_tokens for row in batch), ended - began)
        return list(answer.results)

    def _learn(self, num_tokens: int, seconds: float) -> None:
        speed, past = num_tokens / max(seconds, 1e-6), self._tokens_per_s
        self._tokens_per_s = speed if past is None else _MEMORY * past + (1 - _MEMORY) * speed
        self.batch_tokens = round(
            min(max(BATCH_S * self._tokens_per_s, _LEAST_TOKENS), _MOST_TOKENS)
        )
