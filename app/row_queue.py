"""Rows waiting for the engine: fair between tasks, and between the requests of a task.

Plain data structure: no asyncio, no clock, no torch. `app.batcher` drives it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Row(Protocol):
    """What a row must tell: its length."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the row adds to a batch."""


R = TypeVar("R", bound=Row)


QUANTUM_TOKENS = 32  # what a lane gives in its turn: about a row


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
    """The tickets of one key; `credit` is how many tokens it may still give in this turn."""

    credit: int = QUANTUM_TOKENS
    num_tokens: int = 0
    line: OrderedDict[K, None] = field(default_factory=OrderedDict)


class RowQueue(Generic[K]):
    """A line of lanes, one a key, that take turns by tokens; in a lane tickets take turns by rows.

    Turns of lanes keep a task with much traffic from holding up one with little: a lane that comes
    new waits for one turn of each lane before it. Turns of tickets keep a request of a thousand
    rows from holding up a request of one: that one's row waits for at most one row of each request
    before it. A lane may overdraw its credit by one row and sits out turns until it is paid back,
    so that tasks with long rows get no more tokens than others (surplus round robin). Each step is
    O(1), as each visit to a lane either takes a row or pays `QUANTUM_TOKENS` of one back.

    Attributes:
        num_rows: rows waiting.
        num_tokens: their tokens.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_tokens = 0
        self._lanes: OrderedDict[Hashable, _Lane[K]] = OrderedDict()
        self._lane_of: dict[K, Hashable] = {}

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

    def tokens_before(self, key: Hashable) -> int:
        """About how many tokens are taken before a row of that key which would be added now.

        That is everything, or less when others have more than their share: what its own lane
        holds, one turn more, and as much of every other lane.
        """
        lane = self._lanes.get(key)
        own = (lane.num_tokens if lane else 0) + QUANTUM_TOKENS
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
        batch: list[tuple[K, int]] = []
        expired: list[K] = []
        free_tokens = max_tokens
        while self._lanes and len(batch) < max_rows:
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
            if batch and size > free_tokens:
                break  # stays at the head of the line: a long row can't be passed over forever
            free_tokens -= size
            lane.credit -= size
            batch.append((ticket, ticket.num_taken))
            self._advance(ticket, key, lane, size)
        return batch, expired

    def _advance(self, ticket: K, key: Hashable, lane: _Lane[K], size: int) -> None:
        ticket.num_taken += 1
        self._count(lane, -1, -size)
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
        lane.num_tokens += num_tokens


def count_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows."""
    return sum(row.num_tokens for row in rows)
