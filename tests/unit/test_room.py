"""Room in the queue: limits for everybody, and what those may do who have less than their share."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from app.errors import OverloadedError
from app.jobs import BatchLimits
from app.pace import Pace
from app.room import Room
from app.row_queue import RowQueue, Ticket

LIMITS = BatchLimits(4, 100, max_queue_rows=100, max_queue_tokens=1000)


@dataclass(frozen=True)
class Row:
    num_tokens: int


class Rig:
    def __init__(self) -> None:
        self.queue: RowQueue[Ticket[Row]] = RowQueue(Pace().short_budget)
        self.room = Room(self.queue, LIMITS, Pace(), self)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float) -> None:
        raise NotImplementedError

    def on_answer(self, queue_s: float) -> None:
        raise NotImplementedError

    def on_drop(self, reason: str) -> None:
        assert reason == "rejected"

    def has(self, key: str, num_rows: int, num_tokens: int) -> bool:
        try:
            self.room.check_size(key, num_rows, num_tokens, now=0.0)
        except OverloadedError:
            return False
        return True

    def add(self, key: str, num_rows: int, length: int = 1) -> None:
        self.queue.add(Ticket([Row(length)] * num_rows, 1e9, key))


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("announced", [False, True])
def test_one_tasks_rows_leave_room_for_anothers(rig: Rig, announced: bool) -> None:
    for _ in range(4):
        assert rig.has("a", 25, 0)
        rig.room.announce("a", 25) if announced else rig.add("a", 25)
    assert not rig.has("a", 1, 0)
    assert rig.has("b", 33, 0), "a third: for a, for b and for who comes next"
    assert not rig.has("b", 34, 0)
    rig.room.announce("b", 30)
    assert rig.has("b", 3, 0)
    assert not rig.has("b", 4, 0)
    assert rig.has("c", 25, 0)
    rig.room.announce("b", -30)
    assert rig.has("c", 33, 0)


@pytest.mark.parametrize("length", [1, 100])
def test_the_same_with_tokens(rig: Rig, length: int) -> None:
    rig.add("a", 1000 // length, length) if length > 1 else rig.add("a", 99, 10)
    assert not rig.has("a", 0, 11)
    assert rig.has("b", 0, 333)
    assert not rig.has("b", 0, 334)


def test_announced_rows_need_no_more_room(rig: Rig) -> None:
    """However many others came meanwhile: they were promised it."""
    rig.add("a", 100)
    rig.room.announce("b", 33)
    for number in range(9):
        rig.add(f"c{number}", 7)
    assert not rig.has("b", 1, 0)
    assert rig.has("b", 0, 33)


def test_an_empty_queue_takes_any_length(rig: Rig) -> None:
    assert rig.has("a", 1, 10**6)
    rig.add("a", 1)
    assert not rig.has("a", 1, 10**6)


def test_memory_is_bounded_whoever_comes() -> None:
    """Whatever is asked by whomever: never more than twice the limits, and nobody beyond them who
    has more than a share."""
    draw = random.Random(3)
    for _ in range(30):
        rig, held = Rig(), Counter[str]()
        for _ in range(200):
            key, num_rows = f"task{draw.randrange(40)}", draw.randrange(1, 101)
            waiting = rig.room.num_rows
            if rig.has(key, num_rows, num_rows):
                rig.add(key, num_rows)
                held[key] += num_rows
                assert waiting + num_rows <= 100 or held[key] <= 100 / (len(held) + 1)
        assert rig.room.num_rows <= 200


def test_a_deadline_that_is_over_is_not_called_an_overload() -> None:
    """It would be answered 429 under load, with an hour to come back, and 504 on an idle server."""
    rig = Rig()
    pace = Pace()
    pace.end(pace.begin(10, 0.0, rows_wait=True), 1.0)
    rig.room = Room(rig.queue, LIMITS, pace, rig)
    rig.add("busy", 50)
    with pytest.raises(OverloadedError):
        rig.room.check_wait("other", deadline=1.5, now=1.0)
    rig.room.check_wait("other", deadline=1.0, now=1.0)
