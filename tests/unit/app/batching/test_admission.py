"""Room in the queue: limits for everybody, and what those may do who have less than their share.

The pace: which batches tell something, and how long a wait is made of it.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from app.batching.admission import Pace, Room
from app.batching.queue import BatchLimits, RowQueue, Ticket
from app.errors import OverloadedError


def measured(*batches: tuple[int, float]) -> Pace:
    """A pace that has seen batches of (tokens, seconds) while rows waited; it is 0 o'clock."""
    pace = Pace()
    for num_tokens, seconds in batches:
        pace.end(pace.begin(num_tokens, -seconds, rows_wait=True), 0.0)
    return pace


def test_nothing_known_is_no_wait() -> None:
    pace = Pace()
    running = pace.begin(1000, 0.0, rows_wait=True)
    assert pace.seconds(10**6, 5.0) == 0.0
    pace.end(running, 5.0)
    assert pace.seconds(1000, 5.0) == pytest.approx(5.0)


def test_batches_that_nobody_waited_for_tell_nothing() -> None:
    pace = measured((1000, 1.0))
    pace.end(pace.begin(1, 0.0, rows_wait=False), 60.0)
    assert pace.seconds(500, 60.0) == pytest.approx(0.5)


def test_batches_that_are_far_faster_than_expected_are_believed_in_any_case() -> None:
    """Else a stall in the first batch would have everything refused that would have to wait."""
    pace = measured((200, 10.0))
    for _ in range(40):
        pace.end(pace.begin(1000, 0.0, rows_wait=False), 1.0)
    assert 1.0 < pace.seconds(1000, 1.0) < 2.0


def test_batches_that_are_a_little_faster_are_not_or_the_pace_would_only_ever_grow() -> None:
    pace = measured((1000, 1.0))
    for _ in range(40):
        pace.end(pace.begin(1500, 0.0, rows_wait=False), 1.0)
    assert pace.seconds(1000, 1.0) == pytest.approx(1.0)


def test_batches_side_by_side_make_one_speed() -> None:
    pace = Pace()
    both = [pace.begin(500, 0.0, 0.5, rows_wait=True) for _ in range(2)]
    for running in both:
        pace.end(running, 1.0)
    assert pace.seconds(1000, 1.0) == pytest.approx(1.0)
    pace.begin(500, 1.0, 0.5, rows_wait=True)
    assert pace.seconds(0, 1.0) == pytest.approx(0.5), "what one runs, all could do in half a time"


def test_the_running_batch_counts_with_what_is_left_of_it() -> None:
    pace = measured((1000, 1.0))
    pace.begin(2000, 10.0, rows_wait=True)
    assert pace.seconds(500, 10.5) == pytest.approx(2.0)
    assert pace.seconds(500, 99.0) == pytest.approx(0.5), "overdue is not less than nothing"


def test_a_change_of_speed_is_believed_step_by_step() -> None:
    assert measured((1000, 1.0), (500, 1.0)).seconds(900, 0.0) == pytest.approx(1.0)
    assert measured((1000, 1.0), *[(500, 1.0)] * 40).seconds(500, 0.0) == pytest.approx(1.0, 0.01)


def test_a_short_batch_is_an_eighth_but_no_less_than_512_tokens_where_nothing_is_known() -> None:
    full = (100, 512, 1000, 4096, 16384)
    assert [Pace().short_budget(size) for size in full] == [100, 512, 512, 512, 2048]


def test_a_short_batch_takes_25_ms_on_a_slow_engine_but_is_no_shorter_than_a_half() -> None:
    budgets = [
        [measured((speed, 1.0)).short_budget(size) for size in (100, 512, 4096, 16384)]
        for speed in (2_000, 16_000, 60_000, 10**6)
    ]
    assert budgets == [
        [50, 256, 256, 1024],
        [100, 400, 400, 1024],
        [100, 512, 512, 1500],
        [100, 512, 512, 2048],
    ]


def test_a_worker_of_several_gets_its_share_of_a_short_batch() -> None:
    pace = Pace(num_workers=2)
    assert [pace.short_budget(size) for size in (100, 1000, 2048, 8192)] == [100, 256, 256, 1024]
    pace.end(pace.begin(7_000, 0.0, 0.5, rows_wait=True), 1.0)
    assert [pace.short_budget(size) for size in (100, 1000, 2048, 8192)] == [100, 175, 175, 512]


def test_a_pace_is_known_for_a_while() -> None:
    assert not Pace().is_known(0.0)
    pace = measured((1000, 1.0))
    assert pace.is_known(10.0)
    assert not pace.is_known(10.1)
    pace.end(pace.begin(1, 20.0, rows_wait=False), 21.0)
    assert not pace.is_known(21.0), "nothing was measured"


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
