"""Laws of the batcher for any mix of submissions, cancels, expiries and failing batches.

The engine is held at a gate: hypothesis decides what happens between one batch and the next.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batching.batcher import Batcher
from app.batching.queue import BatchLimits
from app.batching.workers import Parallelism
from app.errors import (
    BatchFailedError,
    DeadlineExceededError,
    DeadlineTooShortError,
    OverloadedError,
)
from tests.laws import law

pytestmark = pytest.mark.law

FAR = 10**6
LIMITS = BatchLimits(
    max_batch_rows=4, max_batch_tokens=20, max_queue_rows=10_000, max_queue_tokens=10**6
)


@dataclass(frozen=True)
class Row:
    number: int  # unique in a run
    num_tokens: int
    is_poison: bool


class GatedEngine:
    """Runs a batch for each permit; raises if a row of it is poison."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.at_gate = threading.Event()
        self.batches: list[list[Row]] = []
        self.done: list[list[Row]] = []

    def __call__(self, rows: Sequence[Row]) -> list[int]:
        self.batches.append(list(rows))
        self.at_gate.set()
        assert self.permits.acquire(timeout=20)
        if any(row.is_poison for row in rows):
            raise ValueError("poison")
        self.done.append(list(rows))
        return [result_of(row) for row in rows]

    def let_through(self) -> None:
        self.at_gate.clear()
        self.permits.release()


def result_of(row: Row) -> int:
    return row.number * 7 + 1


@dataclass
class Sent:
    """A request, and how many batches had begun when it was given up."""

    rows: list[Row]
    deadline: float
    task: asyncio.Task[Any]
    given_up_after: int | None = None


@dataclass
class World:
    engine: GatedEngine = field(default_factory=GatedEngine)
    now: float = 0.0
    sent: list[Sent] = field(default_factory=list)
    num_rows: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        pass

    def on_answer(self, queue_s: float) -> None:
        pass

    def on_drop(self, reason: str) -> None:
        self.drops[reason] += 1


row_shapes = st.tuples(st.integers(1, 30), st.sampled_from([False, False, False, True]))
actions = st.one_of(
    st.tuples(
        st.just("submit"), st.lists(row_shapes, min_size=1, max_size=6), st.sampled_from([5, FAR])
    ),
    st.tuples(st.just("cancel"), st.integers(0, 20), st.none()),
    st.tuples(st.just("tick"), st.integers(1, 4), st.none()),
    st.tuples(st.just("engine"), st.integers(1, 3), st.none()),
)


@law(150)
@given(st.lists(actions, min_size=1, max_size=25))
def test_nothing_is_lost_repeated_or_reordered(plan: list[tuple[str, Any, Any]]) -> None:
    world = asyncio.run(play(plan))
    check_batches(world)
    for sent in world.sent:
        check_end(sent, world)


async def play(plan: list[tuple[str, Any, Any]]) -> World:
    world = World()
    batcher: Batcher[Row, int] = Batcher(
        Parallelism(world.engine), LIMITS, world, clock=lambda: world.now
    )
    batcher.start()
    for name, amount, more in plan:
        if name == "submit":
            submit(world, batcher, amount, more)
        elif name == "cancel":
            cancel(world, amount)
        elif name == "tick":
            world.now += amount
            give_up_expired(world)
        else:
            for _ in range(amount):
                if world.engine.at_gate.is_set():
                    world.engine.let_through()
                    await settle(world, batcher)
        await settle(world, batcher)
    while world.engine.at_gate.is_set():
        world.engine.let_through()
        await settle(world, batcher)
    await asyncio.wait_for(
        asyncio.gather(*(sent.task for sent in world.sent), return_exceptions=True), 10
    )
    assert (batcher.queue.num_rows, batcher.queue.num_tokens) == (0, 0)
    await batcher.stop(1.0)
    return world


async def settle(world: World, batcher: Batcher[Row, int]) -> None:
    """Until the engine is held at its gate, or has nothing to do."""
    for _ in range(4000):
        for _ in range(4):
            await asyncio.sleep(0)
        pending = any(not sent.task.done() for sent in world.sent)
        if world.engine.at_gate.is_set() or not (pending or batcher.queue.num_rows):
            return
        await asyncio.sleep(0.0005)
    raise AssertionError("the batcher hangs")


def submit(
    world: World, batcher: Batcher[Row, int], shapes: list[tuple[int, bool]], patience: float
) -> None:
    rows = [Row(world.num_rows + n, *shape) for n, shape in enumerate(shapes)]
    world.num_rows += len(rows)
    deadline = world.now + patience
    task = asyncio.create_task(batcher.submit(rows, deadline=deadline))
    world.sent.append(Sent(rows, deadline, task))


def cancel(world: World, index: int) -> None:
    waiting = [sent for sent in world.sent if not sent.task.done()]
    if waiting:
        chosen = waiting[index % len(waiting)]
        chosen.task.cancel()
        chosen.given_up_after = len(world.engine.batches)


def give_up_expired(world: World) -> None:
    for sent in world.sent:
        expired = sent.deadline <= world.now and not sent.task.done()
        if expired and sent.given_up_after is None:
            sent.given_up_after = len(world.engine.batches)


def check_batches(world: World) -> None:
    for batch in world.engine.batches:
        assert 1 <= len(batch) <= LIMITS.max_batch_rows
        assert len(batch) == 1 or sum(row.num_tokens for row in batch) <= LIMITS.max_batch_tokens
    computed = Counter(row.number for batch in world.engine.done for row in batch)
    assert all(count == 1 for count in computed.values()), "a row was computed twice"


def check_end(sent: Sent, world: World) -> None:
    numbers = [row.number for row in sent.rows]
    begun = [row.number for batch in world.engine.batches for row in batch if row.number in numbers]
    first_begun = list(dict.fromkeys(begun))
    assert first_begun == numbers[: len(first_begun)], "rows of a request overtook each other"
    if sent.given_up_after is not None:
        later = {
            row.number for batch in world.engine.batches[sent.given_up_after :] for row in batch
        }
        assert not later & set(numbers), "a row nobody waits for reached the engine"
    if sent.task.cancelled():
        assert sent.given_up_after is not None
    elif isinstance(sent.task.exception(), OverloadedError | DeadlineTooShortError):
        assert sent.deadline < FAR, "refused although there was time"
        assert not begun
    elif error := sent.task.exception():
        poisoned = any(row.is_poison for row in sent.rows)
        assert isinstance(error, DeadlineExceededError | BatchFailedError), error
        assert poisoned or isinstance(error, DeadlineExceededError), "harmed by another's row"
        assert sent.given_up_after is not None or isinstance(error, BatchFailedError)
    else:
        assert not any(row.is_poison for row in sent.rows)
        assert sent.task.result().results == [result_of(row) for row in sent.rows]
