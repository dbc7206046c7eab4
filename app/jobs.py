"""What goes through the batcher: limits, the state of one request, its answer, and who is told.

`app.batcher` does the work on these.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

from app.row_queue import Row, Ticket

R = TypeVar("R", bound=Row)
T = TypeVar("T")


THE_SERVER = "the server (DELTABERT_MAX_QUEUE_S)"
THE_REQUEST = "the request's deadline (its own, or DELTABERT_DEADLINE_S)"


class WaitLimit(NamedTuple):
    """How long rows may wait, and who says so."""

    seconds: float
    whose: str


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
    """Who wants to know what happens; `app.metrics` does."""

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
