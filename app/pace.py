"""The pace of the engine: how fast waiting tokens are worked off, and so how long a wait will be.

Only batches that left rows waiting are measured, from their start to the start of the next one: a
batch of one row says nothing about the speed under load, and what lies between two batches counts.
"""

from __future__ import annotations

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
