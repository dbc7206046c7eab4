"""The line of rows: order, turns, limits, counts."""

from __future__ import annotations

from dataclasses import dataclass

from app.row_queue import QUANTUM_TOKENS, RowQueue, Ticket, count_tokens


@dataclass(frozen=True)
class Row:
    name: str
    num_tokens: int = 10


def ticket(name: str, *lengths: int, deadline: float = 100.0) -> Ticket[Row]:
    return Ticket([Row(f"{name}{n}", length) for n, length in enumerate(lengths)], deadline)


def line_of(*tickets: Ticket[Row]) -> RowQueue[Ticket[Row]]:
    line: RowQueue[Ticket[Row]] = RowQueue()
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
