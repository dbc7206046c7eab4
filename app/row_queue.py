"""Rows waiting for the engine: first come, first served, and fair between requests.

Plain data structure: no asyncio, no clock, no torch. `app.batcher` drives it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class Row(Protocol):
    """What a row must tell: its length."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the row adds to a batch."""


R = TypeVar("R", bound=Row)


@dataclass(eq=False)
class Ticket(Generic[R]):
    """The rows of one request.

    Attributes:
        rows: at least one.
        deadline: when the answer stops being of use, on the clock of `RowQueue.take`'s `now`.
        num_taken: how many rows, from the front, have gone into batches.
    """

    rows: Sequence[R]
    deadline: float
    num_taken: int = 0


K = TypeVar("K", bound=Ticket[Any])


class RowQueue(Generic[K]):
    """A line of tickets, each of which gives one row a turn.

    Turns are what keeps a request of a thousand rows from holding up a request of one: the small
    one's row waits for at most one row of each request before it.

    Attributes:
        num_rows: rows waiting.
        num_tokens: their tokens.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_tokens = 0
        self._line: OrderedDict[K, None] = OrderedDict()

    def add(self, ticket: K, *, urgent: bool = False) -> None:
        """Put a ticket at the end of the line, or at its head when urgent."""
        self._line[ticket] = None
        if urgent:
            self._line.move_to_end(ticket, last=False)
        self.num_rows += len(ticket.rows)
        self.num_tokens += count_tokens(ticket.rows)

    def remove(self, ticket: K) -> None:
        """Take a ticket's waiting rows out; does nothing if none wait."""
        if ticket in self._line:
            del self._line[ticket]
            waiting = ticket.rows[ticket.num_taken :]
            self.num_rows -= len(waiting)
            self.num_tokens -= count_tokens(waiting)

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
        while self._line and len(batch) < max_rows:
            ticket = next(iter(self._line))
            if ticket.deadline <= now:
                self.remove(ticket)
                expired.append(ticket)
                continue
            size = ticket.rows[ticket.num_taken].num_tokens
            if batch and size > free_tokens:
                break  # stays at the head of the line: a long row can't be passed over forever
            free_tokens -= size
            batch.append((ticket, ticket.num_taken))
            self._advance(ticket, size)
        return batch, expired

    def _advance(self, ticket: K, size: int) -> None:
        ticket.num_taken += 1
        self.num_rows -= 1
        self.num_tokens -= size
        if ticket.num_taken == len(ticket.rows):
            del self._line[ticket]
        else:
            self._line.move_to_end(ticket)


def count_tokens(rows: Sequence[Row]) -> int:
    """Tokens of all rows."""
    return sum(row.num_tokens for row in rows)
