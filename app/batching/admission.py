"""Room in the queue: who may add rows, by how many wait, by how long they will, and until when.

Up to the limits of rows and tokens anybody may. Beyond, up to twice as much, only those whose own
lane has less than its share: else one task with a few long lists would shut the queue for all
others, who would wait for one turn only. Rows that are still being tokenized are announced, and
count like those waiting.

The pace of the engine: how fast waiting tokens are worked off, and so how long a wait will be.

Only batches that left rows waiting are measured, or are far faster than expected: one of a row says
nothing about the speed under load.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NoReturn

from app.batching.queue import BatchLimits, BatchObserver, RowQueue
from app.errors import THE_REQUEST, DeadlineTooShortError, OverloadedError, WaitLimit

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
    """Measures tokens a second; `app.batching.workers` says when a batch begins and when it has ended.

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
