"""Rows waiting for the engine: fair between tasks, and between the requests of a task.

Plain data structure: no asyncio, no clock, no torch. `app.batching.batcher` drives it.

What goes through the batcher: limits, the state of one request, its answer, and who is told.

`app.batching.batcher` does the work on these.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, KeysView, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from app.errors import THE_REQUEST, THE_SERVER, WaitLimit


class Row(Protocol):
    """What a row must tell: its length."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the row adds to a batch."""


R = TypeVar("R", bound=Row)


QUANTUM_TOKENS = 32  # what a lane gives in its turn: about a row
RECENT_BATCHES = 16  # so long the others of a batch are expected back
_MEMORY = 0.8  # weight of older batches


@dataclass(eq=False)
class Ticket(Generic[R]):
    """The rows of one request.

    Attributes:
        rows: at least one.
        deadline: when the answer stops being of use, on the clock of `RowQueue.take`'s `now`.
        key: whose share of the engine they use; a task's name, say.
        num_taken: how many rows, from the front, have gone into batches.
    """

    rows: Sequence[R]
    deadline: float
    key: Hashable = None
    num_taken: int = 0


K = TypeVar("K", bound=Ticket[Any])
_URGENT = object()  # the key of a lane that is before all others


@dataclass
class _Lane(Generic[K]):
    """The tickets of one key.

    Attributes:
        credit: how many tokens it may still give in this turn.
        num_rows: waiting.
        num_tokens: of these.
        own: tokens of it in batches in which it was held back, older ones weighing less.
        shared: all tokens of those batches, weighed in the same way.
    """

    credit: int = QUANTUM_TOKENS
    num_rows: int = 0
    num_tokens: int = 0
    own: float = 0.0
    shared: float = 0.0
    line: OrderedDict[K, None] = field(default_factory=OrderedDict)


@dataclass
class _Batch(Generic[K]):
    """A batch that is being put together; urgent rows are nobody's in `given`.

    Attributes:
        rows: tickets and positions of rows in them.
        num_tokens: of all rows.
        given: tokens of each lane.
        most: the largest of these.
    """

    rows: list[tuple[K, int]] = field(default_factory=list)
    num_tokens: int = 0
    given: dict[Hashable, int] = field(default_factory=dict)
    most: int = 0

    def add(self, ticket: K, key: Hashable, size: int) -> None:
        """Take the ticket's next row."""
        self.rows.append((ticket, ticket.num_taken))
        self.num_tokens += size
        if key is not _URGENT:
            self.given[key] = self.given.get(key, 0) + size
            self.most = max(self.most, self.given[key])


class RowQueue(Generic[K]):
    """A line of lanes, one a key, that take turns by tokens; in a lane tickets take turns by rows.

    Turns of lanes keep a task with much traffic from holding up one with little: a lane that comes
    new waits for one turn of each lane before it. Turns of tickets keep a request of a thousand
    rows from holding up a request of one: that one's row waits for at most one row of each request
    before it. A lane may overdraw its credit by one row and sits out turns until it is paid back,
    so that tasks with long rows get no more tokens than others (surplus round robin). Each step is
    O(1), as each visit to a lane either takes a row or pays `QUANTUM_TOKENS` of one back.

    The longer a batch, the longer the next one's rows wait. So once all lanes but one have nothing
    left, that one may fill the batch to a short budget only, as long as others had rows in one
    of the last `RECENT_BATCHES`: their next ones come while this batch runs. It always gets half as
    much as any other in the batch, so that others' long rows can't starve it. A lane that is by
    itself, or several that have much waiting, fill batches to the brim.

    Args:
        short_budget: from the tokens of a full batch to those of a short one; see `app.batching.admission`.

    Attributes:
        num_rows: rows waiting.
        num_tokens: their tokens.
    """

    def __init__(self, short_budget: Callable[[int], int]) -> None:
        self.num_rows = 0
        self.num_tokens = 0
        self._lanes: OrderedDict[Hashable, _Lane[K]] = OrderedDict()
        self._lane_of: dict[K, Hashable] = {}
        self._short_budget = short_budget
        self._num_batches = 0
        self._recent: OrderedDict[Hashable, int] = OrderedDict()  # to the last batch with its rows
        self._held_back: _Lane[K] | None = None  # in the last batch

    def add(self, ticket: K, *, urgent: bool = False) -> None:
        """Put a ticket at the end of its key's lane, or before everything else when urgent."""
        key = _URGENT if urgent else ticket.key
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
            if urgent:
                self._lanes.move_to_end(key, last=False)
        lane.line[ticket] = None
        self._lane_of[ticket] = key
        self._count(lane, len(ticket.rows), count_tokens(ticket.rows))

    def remove(self, ticket: K) -> None:
        """Take a ticket's waiting rows out; does nothing if none wait."""
        if ticket in self._lane_of:
            waiting = ticket.rows[ticket.num_taken :]
            key = self._lane_of[ticket]
            self._count(self._lanes[key], -len(waiting), -count_tokens(waiting))
            self._end(ticket, key)

    @property
    def keys(self) -> KeysView[Hashable]:
        """Those with rows waiting, that of urgent ones among them."""
        return self._lanes.keys()

    def held_by(self, key: Hashable) -> tuple[int, int]:
        """How many rows and tokens of a key wait."""
        lane = self._lanes.get(key)
        return (lane.num_rows, lane.num_tokens) if lane is not None else (0, 0)

    def tokens_before(self, key: Hashable) -> int:
        """About how many tokens are taken before a row of that key which would be added now.

        That is everything, or less when others have more than their share: what its own lane
        holds, one turn more, and as much of every other lane. It is more when its lane was held
        back in the last batch: then as many of others' later rows pass by as of late.
        """
        lane = self._lanes.get(key)
        own = (lane.num_tokens if lane else 0) + QUANTUM_TOKENS
        if lane is not None and lane is self._held_back:
            return round(own * lane.shared / lane.own)
        return min(self.num_tokens, own * len(self._lanes))

    def take(
        self, max_rows: int, max_tokens: int, now: float
    ) -> tuple[list[tuple[K, int]], list[K]]:
        """Take the next batch.

        Args:
            max_rows: most rows in the batch.
            max_tokens: most tokens in the batch; a longer row makes a batch of its own.
            now: tickets whose deadline is not after this are dropped.

        Returns:
            The batch as (ticket, position of the row in it), and the tickets that were dropped.
        """
        batch: _Batch[K] = _Batch()
        expired: list[K] = []
        self._begin_batch()
        while self._lanes and len(batch.rows) < max_rows:
            key, lane = next(iter(self._lanes.items()))
            if lane.credit <= 0 and key is not _URGENT:
                lane.credit += QUANTUM_TOKENS
                self._lanes.move_to_end(key)
                continue
            ticket = next(iter(lane.line))
            if ticket.deadline <= now:
                self.remove(ticket)
                expired.append(ticket)
                continue
            size = ticket.rows[ticket.num_taken].num_tokens
            num_tokens = batch.num_tokens + size
            if batch.rows and num_tokens > max_tokens:
                break  # stays at the head of the line: a long row can't be passed over forever
            if self._is_alone(key, batch) and num_tokens > self._short_budget(max_tokens):
                self._hold_back(lane, batch.given[key], batch.num_tokens)
                break
            batch.add(ticket, key, size)
            self._advance(ticket, key, lane, size)
        return batch.rows, expired

    def _begin_batch(self) -> None:
        self._held_back = None
        self._num_batches += bool(self._lanes)
        oldest = self._num_batches - RECENT_BATCHES
        while self._recent and next(iter(self._recent.values())) < oldest:
            self._recent.popitem(last=False)

    def _is_alone(self, key: Hashable, batch: _Batch[K]) -> bool:
        """No other lane has rows left, though one had lately, and none got twice as much now."""
        has_its_share = 2 * batch.given.get(key, 0) >= batch.most > 0
        return has_its_share and len(self._lanes) == 1 and len(self._recent) > 1

    def _hold_back(self, lane: _Lane[K], own: int, shared: int) -> None:
        lane.own = _MEMORY * lane.own + own
        lane.shared = _MEMORY * lane.shared + shared
        self._held_back = lane

    def _advance(self, ticket: K, key: Hashable, lane: _Lane[K], size: int) -> None:
        ticket.num_taken += 1
        lane.credit -= size
        self._count(lane, -1, -size)
        if key is not _URGENT:
            self._recent[key] = self._num_batches
            self._recent.move_to_end(key)
        if ticket.num_taken == len(ticket.rows):
            self._end(ticket, key)
        else:
            lane.line.move_to_end(ticket)

    def _end(self, ticket: K, key: Hashable) -> None:
        line = self._lanes[key].line
        del line[ticket]
        del self._lane_of[ticket]
        if not line:
            del self._lanes[key]

    def _count(self, lane: _Lane[K], num_rows: int, num_tokens: int) -> None:
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        lane.num_rows += num_rows
        lane.num_tokens += num_tokens


def count_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows."""
    return sum(row.num_tokens for row in rows)


T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """What a batch and the queue may hold.

    Attributes:
        max_queue_s: longest time that a row may have to wait for its batch.
    """

    max_batch_rows: int
    max_batch_tokens: int
    max_queue_rows: int
    max_queue_tokens: int
    max_queue_s: float = math.inf

    def longest_wait(self, left_s: float) -> WaitLimit:
        """How long rows may wait that must be answered within so many seconds."""
        if left_s < self.max_queue_s:
            return WaitLimit(max(left_s, 0.0), THE_REQUEST)
        return WaitLimit(self.max_queue_s, THE_SERVER)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """Results in the order of the rows.

    Attributes:
        results: one a row.
        queue_s: from submission to the start of the first batch with a row of it.
        compute_s: total time of the batches that had rows of it.
    """

    results: list[T]
    queue_s: float
    compute_s: float


class BatchObserver(Protocol):
    """Who wants to know what happens; `app.http.metrics` does."""

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        """A batch was run."""

    def on_answer(self, queue_s: float) -> None:
        """A request got its results."""

    def on_drop(self, reason: str) -> None:
        """A request ended without: rejected, expired, cancelled or failed."""


@dataclass(eq=False)
class Job(Ticket[R], Generic[R, T]):
    """A ticket with its results so far, and the future that its caller waits for."""

    future: asyncio.Future[None] = field(kw_only=True)
    queued_at: float = field(kw_only=True)
    results: dict[int, T] = field(default_factory=dict)
    started_at: float | None = None
    compute_s: float = 0.0

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)

    def finish(self) -> None:
        """End well if all results are there."""
        if not self.future.done() and len(self.results) == len(self.rows):
            self.future.set_result(None)
