"""Laws of the row queue, whatever is added, removed and taken: nothing lost, nobody starved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.row_queue import QUANTUM_TOKENS, RowQueue, Ticket

LONGEST = 700
MAX_ROWS = 6


@dataclass(frozen=True)
class Row:
    num_tokens: int


lengths = st.lists(st.integers(1, LONGEST), min_size=1, max_size=8)
actions = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), lengths),
    st.tuples(st.just("urgent"), st.just("a"), lengths),
    st.tuples(st.just("remove"), st.integers(0, 20), st.none()),
    st.tuples(st.just("take"), st.integers(1, 2000), st.none()),
)


@given(st.lists(actions, max_size=40))
def test_each_row_is_taken_once_and_the_counts_are_right(plan: list[tuple[str, Any, Any]]) -> None:
    line: RowQueue[Ticket[Row]] = RowQueue()
    tickets: list[Ticket[Row]] = []
    removed: set[Ticket[Row]] = set()
    taken: list[tuple[Ticket[Row], int]] = []
    for name, first, second in plan:
        if name in ("add", "urgent"):
            tickets.append(Ticket([Row(length) for length in second], 1.0, first))
            line.add(tickets[-1], urgent=name == "urgent")
        elif name == "remove" and tickets:
            removed.add(tickets[first % len(tickets)])
            line.remove(tickets[first % len(tickets)])
        elif name == "take":
            batch, expired = line.take(MAX_ROWS, first, now=0.0)
            assert not expired
            assert bool(batch) == any(one.num_taken for one, _ in batch)
            taken += batch
        waiting = [
            row.num_tokens
            for one in tickets
            if one not in removed
            for row in one.rows[one.num_taken :]
        ]
        assert (line.num_rows, line.num_tokens) == (len(waiting), sum(waiting))
    taken += line.take(10**6, 10**9, now=0.0)[0]
    assert line.num_rows == 0
    assert max(Counter(taken).values(), default=1) == 1, "a row was taken twice"
    for one in tickets:
        positions = [position for other, position in taken if other is one]
        assert positions == list(range(len(positions))), "rows of a request overtook each other"
        assert one in removed or len(positions) == len(one.rows), "a row was lost"


@given(
    heavy=st.lists(lengths, min_size=1, max_size=30),
    others=st.integers(1, 4),
    light=st.integers(1, LONGEST),
    budget=st.integers(1, 1000),
)
def test_a_row_waits_for_one_turn_of_each_other_task(
    heavy: list[list[int]], others: int, light: int, budget: int
) -> None:
    """Whatever the others have waiting and go on adding."""
    line: RowQueue[Ticket[Row]] = RowQueue()

    def add_to_others() -> None:
        for key in range(others):
            for sizes in heavy:
                line.add(Ticket([Row(size) for size in sizes], 1.0, key))

    add_to_others()
    line.take(MAX_ROWS, budget, now=0.0)
    mine = Ticket([Row(light)], 1.0, "mine")
    line.add(mine)
    before = 0
    while not mine.num_taken:
        batch, _ = line.take(MAX_ROWS, budget, now=0.0)
        before += sum(one.rows[position].num_tokens for one, position in batch if one is not mine)
        add_to_others()
    # The batch that it came with is no longer than the budget, or than one row.
    assert before <= others * (QUANTUM_TOKENS + LONGEST) + max(budget, LONGEST)
