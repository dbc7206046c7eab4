"""Admission: which batches update the throughput estimate, and which requests may queue."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from app.batching.admission import AdmissionController, ThroughputEstimate
from app.batching.queue import BatchLimits, QueuedRequest, RowQueue
from app.errors import OverloadedError


def measured(*batches: tuple[int, float]) -> ThroughputEstimate:
    """An estimate that has seen batches of (tokens, seconds) under load; the clock shows 0."""
    throughput = ThroughputEstimate()
    for num_tokens, seconds in batches:
        throughput.end(throughput.begin(num_tokens, -seconds, under_load=True), 0.0)
    return throughput


def wait_s(throughput: ThroughputEstimate, num_tokens: int, now: float) -> float:
    """Seconds until the running batches and some tokens more are done."""
    speed = throughput.at(now)
    return speed.busy_s + num_tokens * speed.token_s


def test_no_measurement_is_no_wait() -> None:
    throughput = ThroughputEstimate()
    running = throughput.begin(1000, 0.0, under_load=True)
    assert wait_s(throughput, 10**6, 5.0) == 0.0
    throughput.end(running, 5.0)
    assert wait_s(throughput, 1000, 5.0) == pytest.approx(5.0)


def test_batches_without_load_tell_nothing() -> None:
    throughput = measured((1000, 1.0))
    throughput.end(throughput.begin(1, 0.0, under_load=False), 60.0)
    assert wait_s(throughput, 500, 60.0) == pytest.approx(0.5)


def test_batches_that_are_far_faster_than_expected_count_without_load() -> None:
    """Otherwise a stall in the first batch would have every waiting request refused."""
    throughput = measured((200, 10.0))
    for _ in range(40):
        throughput.end(throughput.begin(1000, 0.0, under_load=False), 1.0)
    assert 1.0 < wait_s(throughput, 1000, 1.0) < 2.0


def test_batches_that_are_a_little_faster_do_not_count_without_load() -> None:
    throughput = measured((1000, 1.0))
    for _ in range(40):
        throughput.end(throughput.begin(1500, 0.0, under_load=False), 1.0)
    assert wait_s(throughput, 1000, 1.0) == pytest.approx(1.0)


def test_batches_side_by_side_make_one_speed() -> None:
    throughput = ThroughputEstimate()
    both = [throughput.begin(500, 0.0, 0.5, under_load=True) for _ in range(2)]
    for running in both:
        throughput.end(running, 1.0)
    assert wait_s(throughput, 1000, 1.0) == pytest.approx(1.0)
    throughput.begin(500, 1.0, 0.5, under_load=True)
    assert wait_s(throughput, 0, 1.0) == pytest.approx(0.5), "two shares halve the time of one"


def test_the_running_batch_counts_with_the_rest_of_its_time() -> None:
    throughput = measured((1000, 1.0))
    throughput.begin(2000, 10.0, under_load=True)
    assert wait_s(throughput, 500, 10.5) == pytest.approx(2.0)
    assert wait_s(throughput, 500, 99.0) == pytest.approx(0.5), "overdue is not less than nothing"


def test_a_change_of_speed_is_believed_step_by_step() -> None:
    assert wait_s(measured((1000, 1.0), (500, 1.0)), 900, 0.0) == pytest.approx(1.0)
    assert wait_s(measured((1000, 1.0), *[(500, 1.0)] * 40), 500, 0.0) == pytest.approx(1.0, 0.01)


def test_a_capped_batch_is_an_eighth_but_at_least_512_tokens_without_a_measurement() -> None:
    full = (100, 512, 1000, 4096, 16384)
    capped = [ThroughputEstimate().small_batch_tokens(size) for size in full]
    assert capped == [100, 512, 512, 512, 2048]


def test_a_capped_batch_takes_25_ms_on_a_slow_engine_but_is_at_least_half() -> None:
    budgets = [
        [measured((speed, 1.0)).small_batch_tokens(size) for size in (100, 512, 4096, 16384)]
        for speed in (2_000, 16_000, 60_000, 10**6)
    ]
    assert budgets == [
        [50, 256, 256, 1024],
        [100, 400, 400, 1024],
        [100, 512, 512, 1500],
        [100, 512, 512, 2048],
    ]


def test_a_worker_of_several_gets_its_part_of_a_capped_batch() -> None:
    throughput, full = ThroughputEstimate(num_workers=2), (100, 1000, 2048, 8192)
    assert [throughput.small_batch_tokens(size) for size in full] == [100, 256, 256, 1024]
    throughput.end(throughput.begin(7_000, 0.0, 0.5, under_load=True), 1.0)
    assert [throughput.small_batch_tokens(size) for size in full] == [100, 175, 175, 512]


def test_a_measurement_is_recent_for_a_while() -> None:
    assert not ThroughputEstimate().at(0.0).is_recent
    throughput = measured((1000, 1.0))
    assert throughput.at(10.0).is_recent
    assert not throughput.at(10.1).is_recent
    throughput.end(throughput.begin(1, 20.0, under_load=False), 21.0)
    assert not throughput.at(21.0).is_recent, "nothing was measured"


LIMITS = BatchLimits(4, 100, max_queue_rows=100, max_queue_tokens=1000)


@dataclass(frozen=True)
class Row:
    num_tokens: int


class Rig:
    def __init__(self) -> None:
        throughput = ThroughputEstimate()
        self.queue: RowQueue[QueuedRequest[Row]] = RowQueue(throughput.small_batch_tokens)
        self.admission = AdmissionController(self.queue, LIMITS, throughput, self)

    def on_batch(self, num_rows: int, num_tokens: int, seconds: float, fill: float) -> None:
        raise NotImplementedError

    def on_answer(self, queue_s: float) -> None:
        raise NotImplementedError

    def on_drop(self, reason: str) -> None:
        assert reason == "rejected"

    @property
    def num_rows(self) -> int:
        return self.queue.num_rows + self.queue.num_reserved

    def admits(self, key: str, num_rows: int, num_tokens: int, num_reserved: int = 0) -> bool:
        try:
            self.admission.admit(key, num_rows, num_tokens, 1e9, now=0.0, num_reserved=num_reserved)
        except OverloadedError:
            return False
        return True

    def add(self, key: str, num_rows: int, length: int = 1) -> None:
        self.queue.add(QueuedRequest([Row(length)] * num_rows, 1e9, key))


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("reserved", [False, True])
def test_the_rows_of_one_task_leave_space_for_another_task(rig: Rig, reserved: bool) -> None:
    for _ in range(4):
        assert rig.admits("a", 25, 0)
        rig.queue.reserve("a", 25) if reserved else rig.add("a", 25)
    assert not rig.admits("a", 1, 0)
    assert rig.admits("b", 33, 0), "a third: for a, for b and for the next task"
    assert not rig.admits("b", 34, 0)
    rig.queue.reserve("b", 30)
    assert rig.admits("b", 3, 0)
    assert not rig.admits("b", 4, 0)
    assert rig.admits("c", 25, 0)
    rig.queue.release("b", 30)
    assert rig.admits("c", 33, 0)


@pytest.mark.parametrize("length", [1, 100])
def test_the_tokens_of_one_task_leave_space_for_another_task(rig: Rig, length: int) -> None:
    rig.add("a", 1000 // length, length) if length > 1 else rig.add("a", 99, 10)
    assert not rig.admits("a", 1, 11, num_reserved=1)
    assert rig.admits("b", 1, 333, num_reserved=1)
    assert not rig.admits("b", 1, 334, num_reserved=1)


def test_reserved_rows_are_admitted_however_many_came_meanwhile(rig: Rig) -> None:
    rig.add("a", 100)
    rig.queue.reserve("b", 33)
    for number in range(9):
        rig.add(f"c{number}", 7)
    assert not rig.admits("b", 1, 0)
    assert rig.admits("b", 33, 33, num_reserved=33)


def test_an_empty_queue_takes_any_length(rig: Rig) -> None:
    assert rig.admits("a", 1, 10**6)
    rig.add("a", 1)
    assert not rig.admits("a", 1, 10**6)


def test_a_request_whose_rows_are_not_known_yet_is_not_refused_for_a_full_queue(rig: Rig) -> None:
    rig.add("a", 100, 100)
    assert not rig.admits("a", 1, 0)
    assert rig.admits("a", 0, 0)


def test_memory_is_bounded_for_any_traffic() -> None:
    """The queue never exceeds twice its limits, and only small shares exceed the limits at all."""
    draw = random.Random(3)
    for _ in range(30):
        rig, held = Rig(), Counter[str]()
        for _ in range(200):
            key, num_rows = f"task{draw.randrange(40)}", draw.randrange(1, 101)
            waiting = rig.num_rows
            if rig.admits(key, num_rows, num_rows):
                rig.add(key, num_rows)
                held[key] += num_rows
                assert waiting + num_rows <= 100 or held[key] <= 100 / (len(held) + 1)
        assert rig.num_rows <= 200


def test_a_deadline_that_is_over_is_not_called_an_overload() -> None:
    """It would be answered 429 under load, with an hour to come back, and 504 on an idle server."""
    rig = Rig()
    throughput = ThroughputEstimate()
    throughput.end(throughput.begin(10, 0.0, under_load=True), 1.0)
    admission = AdmissionController(rig.queue, LIMITS, throughput, rig)
    rig.add("busy", 50)
    with pytest.raises(OverloadedError):
        admission.admit("other", 0, 0, deadline=1.5, now=1.0)
    admission.admit("other", 0, 0, deadline=1.0, now=1.0)
