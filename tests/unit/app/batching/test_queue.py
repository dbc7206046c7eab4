"""The line of rows: order, turns, limits, counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from app.batching.admission import Pace
from app.batching.queue import QUANTUM_TOKENS, RECENT_BATCHES, RowQueue, Ticket, count_tokens


@dataclass(frozen=True)
class Row:
    name: str
    num_tokens: int = 10


def ticket(name: str, *lengths: int, deadline: float = 100.0) -> Ticket[Row]:
    return Ticket([Row(f"{name}{n}", length) for n, length in enumerate(lengths)], deadline)


def line_of(*tickets: Ticket[Row]) -> RowQueue[Ticket[Row]]:
    line: RowQueue[Ticket[Row]] = RowQueue(Pace().short_budget)
    for one in tickets:
        line.add(one)
    return line


def names(batch: list[tuple[Ticket[Row], int]]) -> list[str]:
    return [one.rows[position].name for one, position in batch]


def test_requests_take_turns_and_keep_their_own_order() -> None:
    line = line_of(ticket("a", 5, 5, 5, 5), ticket("b", 5), ticket("c", 5, 5))
    batch, _ = line.take(5, 1000, now=0.0)
    assert names(batch) == ["a0", "b0", "c0", "a1", "c1"]
    assert names(line.take(5, 1000, now=0.0)[0]) == ["a2", "a3"]
    assert line.take(5, 1000, now=0.0) == ([], [])


def test_a_small_request_is_in_the_next_batch_whatever_waits_before_it() -> None:
    line = line_of(ticket("big", *[10] * 1000))
    line.take(8, 1000, now=0.0)
    line.add(ticket("small", 10))
    assert "small0" in names(line.take(8, 1000, now=0.0)[0])


def test_a_batch_ends_at_the_first_row_that_does_not_fit() -> None:
    line = line_of(ticket("a", 60), ticket("b", 50), ticket("c", 10))
    assert names(line.take(8, 100, now=0.0)[0]) == ["a0"]
    assert names(line.take(8, 100, now=0.0)[0]) == ["b0", "c0"]


def test_a_row_over_the_budget_runs_alone() -> None:
    line = line_of(ticket("long", 500), ticket("b", 1))
    assert names(line.take(8, 100, now=0.0)[0]) == ["long0"]
    assert names(line.take(8, 100, now=0.0)[0]) == ["b0"]


def test_urgent_tickets_go_first() -> None:
    line = line_of(ticket("a", 5), ticket("b", 5))
    line.add(ticket("u", 5), urgent=True)
    assert names(line.take(2, 1000, now=0.0)[0]) == ["u0", "a0"]


def test_expired_tickets_are_dropped_and_reported() -> None:
    late = ticket("late", 5, 5, deadline=1.0)
    line = line_of(late, ticket("b", 5, deadline=1.5))
    batch, expired = line.take(8, 1000, now=1.0)
    assert names(batch) == ["b0"]
    assert expired == [late]
    assert (line.num_rows, line.num_tokens) == (0, 0)


def test_counts_follow_every_change() -> None:
    a, b = ticket("a", 3, 4, 5), ticket("b", 7)
    line = line_of(a, b)
    assert (line.num_rows, line.num_tokens) == (4, 19)
    line.take(3, 1000, now=0.0)  # a0 b0 a1
    assert (line.num_rows, line.num_tokens) == (1, 5)
    line.remove(b)  # has no row left: nothing changes
    assert (line.num_rows, line.num_tokens) == (1, 5)
    line.remove(a)
    line.remove(a)
    assert (line.num_rows, line.num_tokens) == (0, 0)


def test_count_tokens() -> None:
    assert count_tokens([Row("x", 3), Row("y", 4)]) == 7


def keyed(key: str, *lengths: int) -> Ticket[Row]:
    one = ticket(key, *lengths)
    one.key = key
    return one


def test_a_task_with_little_traffic_gets_its_turn_beside_one_with_much() -> None:
    size = QUANTUM_TOKENS // 4
    line = line_of(*(keyed("a", size) for _ in range(50)), *(keyed("b", size) for _ in range(6)))
    taken = names(line.take(50, 10**6, now=0.0)[0])
    assert taken[:14] == ["a0"] * 4 + ["b0"] * 4 + ["a0"] * 4 + ["b0"] * 2


def test_tasks_with_rows_of_any_length_get_the_same_number_of_tokens() -> None:
    line = line_of(keyed("long", *[512] * 100), keyed("short", *[10] * 5000))
    tokens = {"long": 0, "short": 0}
    for _ in range(20):
        for one, position in line.take(10_000, 1000, now=0.0)[0]:
            tokens[str(one.key)] += one.rows[position].num_tokens
    assert sum(tokens.values()) > 15_000
    assert abs(tokens["long"] - tokens["short"]) <= QUANTUM_TOKENS + 512


def test_tokens_before_a_row_are_all_or_its_tasks_share() -> None:
    line = line_of(keyed("a", *[100] * 50), keyed("b", 100))
    assert line.tokens_before("a") == line.num_tokens == 5100
    assert line.tokens_before("b") == 2 * (100 + QUANTUM_TOKENS)
    assert line.tokens_before("c") == 2 * QUANTUM_TOKENS
    assert line_of().tokens_before("a") == 0


def test_nothing_is_left_behind_of_tickets_that_are_gone() -> None:
    line = line_of(keyed("a", 1, 2), keyed("b", 3))
    line.add(keyed("c", 1), urgent=True)
    waiting = keyed("d", 4)
    line.add(waiting)
    line.remove(waiting)
    line.take(10, 1000, now=0.0)
    assert not line._lanes
    assert not line._lane_of


def sizes(batch: list[tuple[Ticket[Row], int]]) -> Counter[str]:
    """Tokens of each task in a batch."""
    found: Counter[str] = Counter()
    for one, position in batch:
        found[str(one.key)] += one.rows[position].num_tokens
    return found


def crowded_line() -> RowQueue[Ticket[Row]]:
    """2,000 rows of one task, 2 of another."""
    return line_of(keyed("busy", *[10] * 2000), keyed("quiet", 10, 10))


def test_one_task_does_not_fill_the_batches_that_others_wait_for() -> None:
    line = crowded_line()
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"busy": 490, "quiet": 20}
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"busy": 510}
    line.add(keyed("quiet", 10))
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"busy": 500, "quiet": 10}


def test_batches_are_full_again_when_the_others_stay_away() -> None:
    line = crowded_line()
    taken = [sizes(line.take(1000, 800, now=0.0)[0]).total() for _ in range(RECENT_BATCHES + 3)]
    assert taken == [510] * (RECENT_BATCHES + 1) + [800] * 2
    assert list(line._recent) == ["busy"], "the other one is remembered for ever"


def test_time_without_work_is_no_batch() -> None:
    line = line_of(keyed("quiet", 10))
    for _ in range(3 * RECENT_BATCHES):
        line.take(1000, 800, now=0.0)
    line.add(keyed("busy", *[10] * 100))
    assert sizes(line.take(1000, 800, now=0.0)[0]) == {"busy": 510}


def test_a_task_by_itself_fills_batches() -> None:
    line = line_of(keyed("busy", *[10] * 2000))
    for _ in range(3):
        assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"busy": 2000}


def test_fan_outs_are_a_task_like_others() -> None:
    line = line_of(ticket("fan-out", *[10] * 2000), keyed("quiet", 10))
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"None": 500, "quiet": 10}


def test_several_busy_tasks_fill_batches_together() -> None:
    line = line_of(*(keyed(key, *[32] * 500) for key in "abc"), keyed("quiet", 32))
    assert sizes(line.take(1000, 2080, now=0.0)[0]) == {"a": 704, "b": 672, "c": 672, "quiet": 32}
    assert sizes(line.take(1000, 1920, now=0.0)[0]) == {"a": 640, "b": 640, "c": 640}


def test_the_readiness_check_is_not_company() -> None:
    line = line_of(keyed("busy", *[10] * 2000))
    for _ in range(3):
        line.add(keyed("canary", 10), urgent=True)
        assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"busy": 1990, "canary": 10}


def test_a_row_longer_than_a_short_batch_is_taken_all_the_same() -> None:
    line = line_of(keyed("long", 700, 700, 700), keyed("quiet", 10))
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"long": 700, "quiet": 10}
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"long": 700}
    line = line_of(keyed("quiet", 10), keyed("long", 600, 600))
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"quiet": 10, "long": 600}
    line = line_of(keyed("quiet", 10), keyed("long", 1995))
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"quiet": 10}
    assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"long": 1995}


def test_long_rows_of_others_do_not_starve_the_one_with_much_waiting() -> None:
    """They fill short batches by themselves, again and again."""
    line = line_of(keyed("busy", *[10] * 2000))
    for _ in range(10):
        line.add(keyed("long", 900))
        assert sizes(line.take(1000, 2000, now=0.0)[0]) == {"long": 900, "busy": 450}


def test_what_expires_or_is_withdrawn_was_no_company() -> None:
    late, gone = keyed("late", 10), keyed("gone", 10)
    late.deadline = 1.0
    line = line_of(late, gone, keyed("busy", *[10] * 500))
    line.remove(gone)
    batch, expired = line.take(1000, 2000, now=1.0)
    assert (sizes(batch), expired) == ({"busy": 2000}, [late])


def test_who_is_held_back_waits_for_the_others_later_rows_too() -> None:
    line = crowded_line()
    assert line.tokens_before("busy") == line.num_tokens
    line.take(1000, 2000, now=0.0)  # 20 tokens of 510 were the others'
    waiting = line.num_tokens
    assert line.tokens_before("busy") == round((waiting + QUANTUM_TOKENS) * 510 / 490)
    assert line.tokens_before("quiet") == QUANTUM_TOKENS
    for _ in range(3):
        line.add(keyed("quiet", *[10] * 20))
        line.take(1000, 2000, now=0.0)  # 200 of 510
    factor = line.tokens_before("busy") / (line.num_tokens + QUANTUM_TOKENS)
    assert 510 / 490 < factor < 510 / 310, "older batches count too"
    while line.num_tokens > 1000:
        line.take(1000, 2000, now=0.0)
    assert line.tokens_before("busy") == line.num_tokens, "it was by itself in the last batch"


def test_what_a_key_holds() -> None:
    line: RowQueue[Ticket[Row]] = RowQueue(Pace().short_budget)
    first, second = (Ticket([Row("a", 7), Row("b", 8)], 100.0, "mine") for _ in range(2))
    line.add(first)
    line.add(second)
    assert (line.held_by("mine"), line.held_by("other")) == ((4, 30), (0, 0))
    assert set(line.keys) == {"mine"}
    line.take(1, 1000, now=0.0)
    assert line.held_by("mine") == (3, 23)
    line.remove(second)
    assert line.held_by("mine") == (1, 8)
    line.remove(first)
    assert (line.held_by("mine"), set(line.keys)) == ((0, 0), set())
