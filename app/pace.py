"""The pace of the engine: how fast waiting tokens are worked off, and so how long a wait will be.

Only batches that left rows waiting are measured, or are far faster than expected: one of a row says
nothing about the speed under load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHORT_S = 0.025
_SHORT_PART = 8
_SHORT_TOKENS = 512
_KNOWN_S = 10.0  # so long a measurement is believed where nothing would put it right
_FAR = 2
_MEMORY = 0.8  # weight of the past in the running mean of tokens per second


@dataclass(eq=False)
class Running:
    """A batch that runs.

    Attributes:
        num_tokens: of it.
        share: of the machine that it has.
        began_at: on the clock of `now`.
        is_telling: whether it says something about the speed under load.
    """

    num_tokens: int
    share: float
    began_at: float
    is_telling: bool


class Pace:
    """Measures tokens a second; `app.crew` says when a batch begins and when it has ended.

    Args:
        num_workers: batches that run side by side under load, each at its share of the speed.
    """

    def __init__(self, num_workers: int = 1) -> None:
        self._num_workers = num_workers
        self._tokens_per_s: float | None = None
        self._told_at = -math.inf
        self._running: set[Running] = set()

    def begin(self, num_tokens: int, now: float, share: float = 1.0, *, rows_wait: bool) -> Running:
        """A batch of so many tokens begins, to be handed to `end`.

        Args:
            num_tokens: of it.
            now: when.
            share: of the machine that it has; the rest has other batches.
            rows_wait: others have to wait for it.
        """
        running = Running(num_tokens, share, now, rows_wait)
        self._running.add(running)
        return running

    def end(self, running: Running, now: float) -> None:
        """The batch is over and the next one can begin."""
        self._running.discard(running)
        speed = running.num_tokens / running.share / max(now - running.began_at, 1e-6)
        past = self._tokens_per_s
        # One that is far faster than expected is believed in any case: what is refused since all is
        # taken to be slow leaves no rows waiting, and nothing would ever be measured again.
        if running.is_telling or (past is not None and speed > _FAR * past):
            self._tokens_per_s = speed if past is None else _MEMORY * past + (1 - _MEMORY) * speed
            self._told_at = now

    def is_known(self, now: float) -> bool:
        """Whether the pace was measured lately.

        A request that an idle engine refuses for an older one would be refused forever, as nothing
        is measured then.
        """
        return now - self._told_at <= _KNOWN_S

    def seconds(self, num_tokens: int, now: float) -> float:
        """How long it takes until the running batches and so many tokens more are done.

        0 as long as nothing was measured: who does not know must not refuse.
        """
        if self._tokens_per_s is None:
            return 0.0
        left = num_tokens / self._tokens_per_s
        for running in self._running:
            expected_s = running.num_tokens / self._tokens_per_s / running.share
            left += running.share * max(expected_s - (now - running.began_at), 0.0)
        return left

    def short_budget(self, max_tokens: int) -> int:
        """How far one task alone may fill a batch that others will soon wait for.

        They wait for a time, so it is what a worker does in `_SHORT_S`: at most an eighth of a full
        batch, or its share of 512 tokens if that is more, and at least half of that most, since
        batches that are shorter still take too much of a slow engine's speed.

        Args:
            max_tokens: that it may have at most.
        """
        least = _SHORT_TOKENS // self._num_workers
        most = min(max(max_tokens // _SHORT_PART, least), max_tokens)
        if self._tokens_per_s is None:
            return most
        return int(max(min(most, _SHORT_S * self._tokens_per_s / self._num_workers), most / 2))
