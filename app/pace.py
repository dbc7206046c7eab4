"""The pace of the engine: how fast waiting tokens are worked off, and so how long a wait will be.

Only batches that left rows waiting are measured, from their start to the start of the next one: a
batch of one row says nothing about the speed under load, and what lies between two batches counts.
"""

from __future__ import annotations

_SHORT_S = 0.025
_SHORT_PART = 8
_SHORT_TOKENS = 512
_MEMORY = 0.8  # weight of the past in the running mean of tokens per second


class Pace:
    """Measures tokens a second; `app.batcher` says when a batch begins and when it has ended."""

    def __init__(self) -> None:
        self._tokens_per_s: float | None = None
        self._num_tokens = 0
        self._began_at = 0.0
        self._is_telling = False

    def begin(self, num_tokens: int, now: float, *, rows_wait: bool) -> None:
        """A batch of so many tokens begins; `rows_wait`: others have to wait for it."""
        self._num_tokens = num_tokens
        self._began_at = now
        self._is_telling = rows_wait

    def end(self, now: float) -> None:
        """The batch is over and the next one can begin; does nothing when none was running."""
        if self._is_telling:
            speed = self._num_tokens / max(now - self._began_at, 1e-6)
            past = speed if self._tokens_per_s is None else self._tokens_per_s
            self._tokens_per_s = _MEMORY * past + (1 - _MEMORY) * speed
        self._num_tokens = 0
        self._is_telling = False

    def seconds(self, num_tokens: int, now: float) -> float:
        """How long it takes until the running batch and so many tokens more are done.

        0 as long as nothing was measured: who does not know must not refuse.
        """
        if self._tokens_per_s is None:
            return 0.0
        running = self._num_tokens / self._tokens_per_s - (now - self._began_at)
        return num_tokens / self._tokens_per_s + max(running, 0.0)

    def short_budget(self, max_tokens: int) -> int:
        """How far one task alone may fill a batch that others will soon wait for.

        They wait for a time, so it is what the engine does in `_SHORT_S`: at most an eighth of a
        full batch, or 512 tokens if that is more, and at least half of that most, since batches
        that are shorter still take too much of a slow engine's speed.

        Args:
            max_tokens: of a full batch.
        """
        most = min(max(max_tokens // _SHORT_PART, _SHORT_TOKENS), max_tokens)
        if self._tokens_per_s is None:
            return most
        return int(max(min(most, _SHORT_S * self._tokens_per_s), most / 2))
