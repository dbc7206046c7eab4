"""The queue of rows: order, rounds, limits, counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from app.batching.admission import ThroughputEstimate
from app.batching.queue import (
    BACKGROUND,
    BACKGROUND_EVERY,
    QUANTUM_TOKENS,
    RECENT_BATCHES,
    Batch,
    QueuedRequest,
    RowQueue,
)


@dataclass(frozen=True)
class Row:
    name: str
    num_tokens: int = 10


def request_of(name: str, *lengths: int, deadline: float = 100.0) -> QueuedRequest[Row]:
    return QueuedRequest([Row(f"{name}{n}", length) for n, length in enumerate(lengths)], deadline)


def queue_of(*requests: QueuedRequest[Row]) -> RowQueue[QueuedRequest[Row]]:
    queue: RowQueue[QueuedRequest[Row]] = RowQueue(ThroughputEstimate().small_batch_tokens)
    for one in requests:
        queue.add(one)
    return queue


def names(batch: list[tuple[QueuedRequest[Row], int]]) -> list[str]:
    return [one.rows[position].name for one, position in batch]


def test_requests_take_turns_and_keep_the_order_of_their_rows() -> None:
    queue = queue_of(request_of("a", 5, 5, 5, 5), request_of("b", 5), request_of("c", 5, 5))
    batch = queue.take(5, 1000, now=0.0)
    assert names(batch.rows) == ["a0", "b0", "c0", "a1", "c1"]
    assert names(queue.take(5, 1000, now=0.0).rows) == ["a2", "a3"]
    assert queue.take(5, 1000, now=0.0) == Batch()


def test_a_small_request_is_in_the_next_batch_behind_any_large_one() -> None:
    queue = queue_of(request_of("big", *[10] * 1000))
    queue.take(8, 1000, now=0.0)
    queue.add(request_of("small", 10))
    assert "small0" in names(queue.take(8, 1000, now=0.0).rows)


def test_a_batch_ends_at_the_first_row_that_does_not_fit() -> None:
    queue = queue_of(request_of("a", 60), request_of("b", 50), request_of("c", 10))
    assert names(queue.take(8, 100, now=0.0).rows) == ["a0"]
    assert names(queue.take(8, 100, now=0.0).rows) == ["b0", "c0"]


def test_a_row_over_the_budget_runs_alone() -> None:
    queue = queue_of(request_of("long", 500), request_of("b", 1))
    assert names(queue.take(8, 100, now=0.0).rows) == ["long0"]
    assert names(queue.take(8, 100, now=0.0).rows) == ["b0"]


def test_urgent_requests_go_first() -> None:
    queue = queue_of(request_of("a", 5), request_of("b", 5))
    queue.add(request_of("u", 5), urgent=True)
    assert names(queue.take(2, 1000, now=0.0).rows) == ["u0", "a0"]


def test_expired_requests_are_dropped_and_reported() -> None:
    late = request_of("late", 5, 5, deadline=1.0)
    queue = queue_of(late, request_of("b", 5, deadline=1.5))
    batch = queue.take(8, 1000, now=1.0)
    assert names(batch.rows) == ["b0"]
    assert batch.expired == [late]
    assert (queue.num_rows, queue.num_tokens) == (0, 0)


def test_counts_follow_every_change() -> None:
    a, b = request_of("a", 3, 4, 5), request_of("b", 7)
    queue = queue_of(a, b)
    assert (queue.num_rows, queue.num_tokens) == (4, 19)
    queue.take(3, 1000, now=0.0)  # a0 b0 a1
    assert (queue.num_rows, queue.num_tokens) == (1, 5)
    queue.remove(b)  # has no row left: nothing changes
    assert (queue.num_rows, queue.num_tokens) == (1, 5)
    queue.remove(a)
    queue.remove(a)
    assert (queue.num_rows, queue.num_tokens) == (0, 0)


def keyed(key: str, *lengths: int) -> QueuedRequest[Row]:
    one = request_of(key, *lengths)
    one.key = key
    return one


def test_a_quiet_task_gets_its_round_next_to_a_busy_task() -> None:
    size = QUANTUM_TOKENS // 4
    queue = queue_of(*(keyed("a", size) for _ in range(50)), *(keyed("b", size) for _ in range(6)))
    taken = names(queue.take(50, 10**6, now=0.0).rows)
    assert taken[:14] == ["a0"] * 4 + ["b0"] * 4 + ["a0"] * 4 + ["b0"] * 2


def test_tasks_with_rows_of_any_length_get_the_same_number_of_tokens() -> None:
    queue = queue_of(keyed("long", *[512] * 100), keyed("short", *[10] * 5000))
    tokens = {"long": 0, "short": 0}
    for _ in range(20):
        for one, position in queue.take(10_000, 1000, now=0.0).rows:
            tokens[str(one.key)] += one.rows[position].num_tokens
    assert sum(tokens.values()) > 15_000
    assert abs(tokens["long"] - tokens["short"]) <= QUANTUM_TOKENS + 512


def test_tokens_before_a_row_are_all_tokens_or_its_lanes_share() -> None:
    queue = queue_of(keyed("a", *[100] * 50), keyed("b", 100))
    assert queue.tokens_before("a") == queue.num_tokens == 5100
    assert queue.tokens_before("b") == 2 * (100 + QUANTUM_TOKENS)
    assert queue.tokens_before("c") == 2 * QUANTUM_TOKENS
    assert queue_of().tokens_before("a") == 0


def test_nothing_is_left_of_requests_that_are_gone() -> None:
    queue = queue_of(keyed("a", 1, 2), keyed("b", 3))
    queue.add(keyed("c", 1), urgent=True)
    waiting = keyed("d", 4)
    queue.add(waiting)
    queue.remove(waiting)
    queue.take(10, 1000, now=0.0)
    assert not queue._lanes
    assert not queue._lane_of
    assert not queue._reserved


def sizes(batch: list[tuple[QueuedRequest[Row], int]]) -> Counter[str]:
    """Tokens of each task in a batch."""
    found: Counter[str] = Counter()
    for one, position in batch:
        found[str(one.key)] += one.rows[position].num_tokens
    return found


def crowded_queue() -> RowQueue[QueuedRequest[Row]]:
    """2,000 rows of one task, 2 of another."""
    return queue_of(keyed("busy", *[10] * 2000), keyed("quiet", 10, 10))


def test_one_task_alone_does_not_fill_a_batch_while_other_tasks_are_active() -> None:
    queue = crowded_queue()
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"busy": 490, "quiet": 20}
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"busy": 510}
    queue.add(keyed("quiet", 10))
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"busy": 500, "quiet": 10}


def test_batches_are_full_again_when_the_others_stay_away() -> None:
    queue = crowded_queue()
    taken = [sizes(queue.take(1000, 800, now=0.0).rows).total() for _ in range(RECENT_BATCHES + 3)]
    assert taken == [510] * (RECENT_BATCHES + 1) + [800] * 2
    assert list(queue._recent) == ["busy"], "the other one is remembered for ever"


def test_takes_from_an_empty_queue_do_not_count_as_batches() -> None:
    queue = queue_of(keyed("quiet", 10))
    for _ in range(3 * RECENT_BATCHES):
        queue.take(1000, 800, now=0.0)
    queue.add(keyed("busy", *[10] * 100))
    assert sizes(queue.take(1000, 800, now=0.0).rows) == {"busy": 510}


def test_a_task_by_itself_fills_batches() -> None:
    queue = queue_of(keyed("busy", *[10] * 2000))
    for _ in range(3):
        assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"busy": 2000}


def test_fan_outs_are_a_task_like_others() -> None:
    queue = queue_of(request_of("fan-out", *[10] * 2000), keyed("quiet", 10))
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"None": 500, "quiet": 10}


def test_several_busy_tasks_fill_batches_together() -> None:
    queue = queue_of(*(keyed(key, *[32] * 500) for key in "abc"), keyed("quiet", 32))
    assert sizes(queue.take(1000, 2080, now=0.0).rows) == {
        "a": 704,
        "b": 672,
        "c": 672,
        "quiet": 32,
    }
    assert sizes(queue.take(1000, 1920, now=0.0).rows) == {"a": 640, "b": 640, "c": 640}


def test_the_readiness_check_does_not_cap_batches() -> None:
    queue = queue_of(keyed("busy", *[10] * 2000))
    for _ in range(3):
        queue.add(keyed("canary", 10), urgent=True)
        assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"busy": 1990, "canary": 10}


def test_a_row_longer_than_a_capped_batch_is_taken() -> None:
    queue = queue_of(keyed("long", 700, 700, 700), keyed("quiet", 10))
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"long": 700, "quiet": 10}
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"long": 700}
    queue = queue_of(keyed("quiet", 10), keyed("long", 600, 600))
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"quiet": 10, "long": 600}
    queue = queue_of(keyed("quiet", 10), keyed("long", 1995))
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"quiet": 10}
    assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"long": 1995}


def test_long_rows_of_other_tasks_do_not_starve_a_busy_task() -> None:
    queue = queue_of(keyed("busy", *[10] * 2000))
    for _ in range(10):
        queue.add(keyed("long", 900))
        assert sizes(queue.take(1000, 2000, now=0.0).rows) == {"long": 900, "busy": 450}


def test_requests_that_expire_or_are_removed_do_not_cap_batches() -> None:
    late, gone = keyed("late", 10), keyed("gone", 10)
    late.deadline = 1.0
    queue = queue_of(late, gone, keyed("busy", *[10] * 500))
    queue.remove(gone)
    batch = queue.take(1000, 2000, now=1.0)
    assert (sizes(batch.rows), batch.expired) == ({"busy": 2000}, [late])


def test_a_capped_lane_also_waits_for_later_rows_of_other_lanes() -> None:
    queue = crowded_queue()
    assert queue.tokens_before("busy") == queue.num_tokens
    queue.take(1000, 2000, now=0.0)  # 20 tokens of 510 were the others'
    waiting = queue.num_tokens
    assert queue.tokens_before("busy") == round((waiting + QUANTUM_TOKENS) * 510 / 490)
    assert queue.tokens_before("quiet") == QUANTUM_TOKENS
    for _ in range(3):
        queue.add(keyed("quiet", *[10] * 20))
        queue.take(1000, 2000, now=0.0)  # 200 of 510
    factor = queue.tokens_before("busy") / (queue.num_tokens + QUANTUM_TOKENS)
    assert 510 / 490 < factor < 510 / 310, "older batches count too"
    while queue.num_tokens > 1000:
        queue.take(1000, 2000, now=0.0)
    assert queue.tokens_before("busy") == queue.num_tokens, "it was by itself in the last batch"


def test_a_lane_that_later_rows_overtake_waits_for_them_too() -> None:
    """In a soak, fan-outs of many rows were admitted beside 40 busy tasks and ended with 504."""
    queue = queue_of(keyed("fan-outs", *[20] * 400))

    def run_batch() -> int:
        for number in range(20):
            if not queue.held_by(f"task{number}")[0]:
                queue.add(keyed(f"task{number}", 20, 20))
        return queue.take(1000, 512, now=0.0).num_tokens

    assert queue.tokens_before("fan-outs") == queue.num_tokens
    for _ in range(60):
        run_batch()
    estimate = queue.tokens_before("fan-outs")
    assert estimate > 5 * queue.num_tokens
    passed = 0
    while queue.held_by("fan-outs")[0]:
        passed += run_batch()
    assert 0.7 < estimate / passed < 1.4


def test_the_rows_and_tokens_that_a_key_holds() -> None:
    queue: RowQueue[QueuedRequest[Row]] = RowQueue(ThroughputEstimate().small_batch_tokens)
    first, second = (QueuedRequest([Row("a", 7), Row("b", 8)], 100.0, "mine") for _ in range(2))
    queue.add(first)
    queue.add(second)
    assert (queue.held_by("mine"), queue.held_by("other")) == ((4, 30), (0, 0))
    assert (queue.count_keys("mine"), queue.count_keys("other")) == (1, 2)
    queue.take(1, 1000, now=0.0)
    assert queue.held_by("mine") == (3, 23)
    queue.remove(second)
    assert queue.held_by("mine") == (1, 8)
    queue.remove(first)
    assert (queue.held_by("mine"), queue.count_keys("mine")) == ((0, 0), 1)
    queue.reserve("mine", 3)
    assert (queue.held_by("mine"), queue.num_reserved, queue.num_rows) == ((3, 0), 3, 0)
    assert queue.count_keys("other") == 2
    queue.release("mine", 3)
    assert (queue.held_by("mine"), queue.num_reserved) == ((0, 0), 0)


def background_of(name: str, *lengths: int, deadline: float = 100.0) -> QueuedRequest[Row]:
    request = request_of(name, *lengths, deadline=deadline)
    request.key = BACKGROUND
    return request


def test_rows_of_the_background_wait_until_no_others_do_and_share_no_batch() -> None:
    queue = queue_of(background_of("bulk", 5, 5, 5), request_of("a", 5), request_of("b", 5))
    assert names(queue.take(8, 100, now=0.0).rows) == ["a0", "b0"]
    assert names(queue.take(2, 100, now=0.0).rows) == ["bulk0", "bulk1"]
    queue.add(request_of("c", 5))
    assert names(queue.take(8, 100, now=0.0).rows) == ["c0"]
    assert (queue.num_rows, queue.num_tokens) == (1, 5)
    assert names(queue.take(8, 4, now=0.0).rows) == ["bulk2"]
    assert queue.take(8, 100, now=0.0) == Batch()


def test_the_background_gets_one_batch_in_many_while_others_always_wait() -> None:
    queue = queue_of(background_of("bulk", *[5] * 3))
    queue.add(request_of("a", *[5] * 3 * BACKGROUND_EVERY))
    taken = [names(queue.take(1, 100, now=0.0).rows)[0][:-1] for _ in range(3 * BACKGROUND_EVERY)]
    turns = [number for number, name in enumerate(taken) if name.startswith("bulk")]
    assert turns == [BACKGROUND_EVERY - 1, 2 * BACKGROUND_EVERY - 1, 3 * BACKGROUND_EVERY - 1]


def test_the_background_caps_no_batch_of_others() -> None:
    queue = queue_of(background_of("bulk", *[10] * 50))
    queue.take(8, 4096, now=0.0)
    queue.add(request_of("a", *[10] * 200))
    assert len(queue.take(256, 4096, now=0.0).rows) == 200


def test_rows_of_the_background_expire_and_are_removed() -> None:
    late, gone = background_of("late", 5, deadline=1.0), background_of("gone", 5)
    queue = queue_of(late, gone)
    assert queue.held_by(BACKGROUND) == (2, 10)
    queue.remove(gone)
    batch = queue.take(8, 100, now=2.0)
    assert (batch.rows, batch.expired) == ([], [late])
    assert queue.num_rows == 0
