"""Room in the queue: who may add rows, by how many wait, by how long they will, and until when.

Up to the limits of rows and tokens anybody may. Beyond, up to twice as much, only those whose own
lane has less than its share: else one task with a few long lists would shut the queue for all
others, who would wait for one turn only. Rows that are still being tokenized are announced, and
count like those waiting.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Any, NoReturn

from app.errors import DeadlineTooShortError, OverloadedError
from app.jobs import THE_REQUEST, BatchLimits, BatchObserver, WaitLimit
from app.pace import Pace
from app.row_queue import RowQueue

_HARD = 2  # what bounds the memory, in limits
_MAX_RETRY_AFTER_S = 60


class Room:
    """Compares what waits, and what was announced, with the limits of a queue."""

    def __init__(
        self, queue: RowQueue[Any], limits: BatchLimits, pace: Pace, observer: BatchObserver
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._pace = pace
        self._observer = observer
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

    def check_wait(self, key: Hashable, deadline: float, now: float) -> None:
        """Refuse rows that would wait too long.

        Raises:
            OverloadedError: at the pace measured they would not begin to run in time.
        """
        wait_s = self._pace.seconds(self._queue.tokens_before(key), now)
        limit = self._limits.longest_wait(deadline - now)
        if wait_s > limit.seconds and deadline > now:  # what is over already ends as such
            self._refuse(wait_s, limit)

    def check_end(
        self, key: Hashable, num_rows: int, num_tokens: int, deadline: float, now: float
    ) -> None:
        """Refuse rows that would begin in time but not end: what is done of them is for nobody.

        Raises:
            DeadlineTooShortError: not even if nothing else waited.
            OverloadedError: not behind what waits.
        """
        if not self._pace.is_known(now):
            return
        own_s = self._pace.seconds(num_tokens, now) - self._pace.seconds(0, now)
        left_s = deadline - now
        if own_s > left_s > 0:  # what is over already ends as such
            self._observer.on_drop("rejected")
            raise DeadlineTooShortError(num_rows, num_tokens, own_s, left_s)
        wait_s = self._pace.seconds(self._queue.tokens_before(key), now)
        if wait_s > left_s - own_s > 0:
            self._refuse(wait_s, WaitLimit(left_s - own_s, THE_REQUEST))

    def check_size(self, key: Hashable, num_rows: int, num_tokens: int, now: float) -> None:
        """Refuse what is too much. Rows that were announced are 0 more.

        Raises:
            OverloadedError: there is no room.
        """
        rows, tokens = self._queue.held_by(key)
        rows += self._announced[key]
        limits, queue = self._limits, self._queue
        if num_rows <= 0 or self._fits(key, num_rows, rows, self.num_rows, limits.max_queue_rows):
            # A request that would not even fit an empty queue is taken when it is empty.
            most = limits.max_queue_tokens
            if not queue.num_rows or self._fits(key, num_tokens, tokens, queue.num_tokens, most):
                return
        self._refuse(self._pace.seconds(queue.tokens_before(key), now))

    def _fits(self, key: Hashable, new: int, own: int, waiting: int, limit: int) -> bool:
        if waiting + new <= limit:
            return True
        keys = {key, *self._announced} - self._queue.keys
        share = limit / (len(self._queue.keys) + len(keys) + 1)  # one is left for who comes next
        return own + new <= share and waiting + new <= _HARD * limit

    def _refuse(self, wait_s: float, limit: WaitLimit | None = None) -> NoReturn:
        """Come back when what waits now will have been worked off."""
        self._observer.on_drop("rejected")
        retry_after_s = min(max(math.ceil(wait_s), 1), _MAX_RETRY_AFTER_S)
        num_tokens = self._queue.num_tokens
        raise OverloadedError(self.num_rows, num_tokens, retry_after_s, wait_s, limit)
