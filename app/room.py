"""Room in the queue: who may add rows when many wait.

Up to its limits anybody may. Beyond, up to twice as much, only those whose own lane has less than
its share: else one task with a few long lists would shut the queue for all others, who would wait
for one turn only. Rows that are still being tokenized are announced, and count like those waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

from app.jobs import BatchLimits
from app.row_queue import RowQueue

_HARD = 2  # what bounds the memory, in limits


class Room:
    """Compares what waits, and what was announced, with the limits of a queue."""

    def __init__(self, queue: RowQueue[Any], limits: BatchLimits) -> None:
        self._queue = queue
        self._limits = limits
        self._announced: Counter[Hashable] = Counter()

    @property
    def num_announced(self) -> int:
        """Rows that will come."""
        return self._announced.total()

    @property
    def num_rows(self) -> int:
        """Rows that wait or will come."""
        return self._queue.num_rows + self.num_announced

    def announce(self, key: Hashable, num_rows: int) -> None:
        """Hold room for rows; a negative number gives it back."""
        self._announced[key] += num_rows
        if not self._announced[key]:
            del self._announced[key]

    def has(self, key: Hashable, num_rows: int, num_tokens: int) -> bool:
        """Whether so much more may wait. For rows that were announced, say that they are 0 more."""
        rows, tokens = self._queue.held_by(key)
        rows += self._announced[key]
        limits, queue = self._limits, self._queue
        enough = self._fits(key, num_rows, rows, self.num_rows, limits.max_queue_rows)
        # A request that would not even fit an empty queue is taken when it is empty.
        return (enough or num_rows <= 0) and (
            not queue.num_rows
            or self._fits(key, num_tokens, tokens, queue.num_tokens, limits.max_queue_tokens)
        )

    def _fits(self, key: Hashable, new: int, own: int, waiting: int, limit: int) -> bool:
        if waiting + new <= limit:
            return True
        keys = {key, *self._announced} - self._queue.keys
        share = limit / (len(self._queue.keys) + len(keys) + 1)  # one is left for who comes next
        return own + new <= share and waiting + new <= _HARD * limit
