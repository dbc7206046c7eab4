"""Laws of the row queue for any mix of adding, removing and taking: no loss, no starvation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.batching.queue import QUANTUM_TOKENS, RECENT_BATCHES, QueuedRequest, RowQueue

pytestmark = pytest.mark.law

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


# A capped batch has this part of a full batch's tokens.
shares = st.sampled_from([1, 2, 5, 1000])


def queue_with(share: int) -> RowQueue[QueuedRequest[Row]]:
    return RowQueue(lambda max_tokens: max_tokens // share)


@given(st.lists(actions, max_size=40), shares)
def test_each_row_is_taken_once_and_the_counts_are_right(
    plan: list[tuple[str, Any, Any]], share: int
) -> None:
    queue = queue_with(share)
    requests: list[QueuedRequest[Row]] = []
    removed: set[QueuedRequest[Row]] = set()
    taken: list[tuple[QueuedRequest[Row], int]] = []
    for name, first, second in plan:
        if name in ("add", "urgent"):
            requests.append(QueuedRequest([Row(length) for length in second], 1.0, first))
            queue.add(requests[-1], urgent=name == "urgent")
        elif name == "remove" and requests:
            removed.add(requests[first % len(requests)])
            queue.remove(requests[first % len(requests)])
        elif name == "take":
            batch = queue.take(MAX_ROWS, first, now=0.0)
            assert not batch.expired
            assert batch.num_tokens == sum(one.rows[n].num_tokens for one, n in batch.rows)
            taken += batch.rows
        waiting = [
            row.num_tokens
            for one in requests
            if one not in removed
            for row in one.rows[one.num_taken :]
        ]
        assert (queue.num_rows, queue.num_tokens) == (len(waiting), sum(waiting))
    taken += queue.take(10**6, 10**12, now=0.0).rows
    assert queue.num_rows == 0
    assert max(Counter(taken).values(), default=1) == 1, "a row was taken twice"
    for one in requests:
        positions = [position for other, position in taken if other is one]
        assert positions == list(range(len(positions))), "rows of a request overtook each other"
        assert one in removed or len(positions) == len(one.rows), "a row was lost"


@given(
    heavy=st.lists(lengths, min_size=1, max_size=30),
    others=st.integers(1, 4),
    light=st.integers(1, LONGEST),
    budget=st.integers(1, 1000),
    share=shares,
)
def test_a_row_waits_for_one_round_of_each_other_task(
    heavy: list[list[int]], others: int, light: int, budget: int, share: int
) -> None:
    queue = queue_with(share)

    def add_to_others() -> None:
        for key in range(others):
            for sizes in heavy:
                queue.add(QueuedRequest([Row(size) for size in sizes], 1.0, key))

    add_to_others()
    queue.take(MAX_ROWS, budget, now=0.0)
    mine = QueuedRequest([Row(light)], 1.0, "mine")
    queue.add(mine)
    before = 0
    while not mine.num_taken:
        batch = queue.take(MAX_ROWS, budget, now=0.0).rows
        before += sum(one.rows[position].num_tokens for one, position in batch if one is not mine)
        add_to_others()
    # The batch that it came with is no longer than the budget, or than one row.
    assert before <= others * (QUANTUM_TOKENS + LONGEST) + max(budget, LONGEST)


@dataclass
class Ledger:
    """Keeps the books of a queue's tasks beside it, to say when a batch must be capped."""

    requests: list[QueuedRequest[Row]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)  # batch with rows of a task
    batches: int = 0
    given: Counter[str] = field(default_factory=Counter)  # tokens of each task in this batch

    def next_sizes(self) -> list[tuple[str, int]]:
        """Task and length of every row that may come next."""
        waiting = [one for one in self.requests if one.num_taken < len(one.rows)]
        return [(str(one.key), one.rows[one.num_taken].num_tokens) for one in waiting]

    def must_be_capped(self, left: set[str]) -> bool:
        """One task is left, others were there lately, and it has had its share of this batch."""
        if len(left) != 1:
            return False
        (alone,) = left
        others = [task for task in self.last if task != alone]
        lately = any(self.batches - self.last[task] <= RECENT_BATCHES for task in others)
        return lately and 2 * self.given[alone] >= max(self.given.values(), default=1)

    def check(self, batch: list[tuple[QueuedRequest[Row], int]], budget: int, capped: int) -> None:
        """Row by row, as it was put together; `batch` has left the requests already."""
        left = Counter(task for task, _ in self.next_sizes())
        left.update(str(one.key) for one, _ in batch)
        self.batches += 1
        self.given.clear()
        for one, position in batch:
            size = one.rows[position].num_tokens
            total = self.given.total() + size
            assert total <= budget or not self.given
            if self.must_be_capped({task for task, count in left.items() if count}):
                assert total <= capped, "one task has filled a batch that others wait for"
            self.given[str(one.key)] += size
            self.last[str(one.key)] = self.batches
            left[str(one.key)] -= 1
        if coming := self.next_sizes():
            longest = max(size for _, size in coming)
            allowed = capped if self.must_be_capped({task for task, _ in coming}) else budget
            assert self.given.total() + longest > allowed, "a batch has ended too soon"


crowds = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("aaab"), st.integers(1, LONGEST), st.integers(1, 60)),
        st.tuples(st.sampled_from("abcd"), st.integers(1, LONGEST), st.just(1)),
        st.tuples(st.just("take"), st.integers(1, 4000), st.integers(1, RECENT_BATCHES + 4)),
    ),
    max_size=30,
)


@given(crowds, shares)
def test_batches_are_capped_for_one_task_alone_and_full_otherwise(
    plan: list[tuple[str, int, int]], share: int
) -> None:
    queue, ledger = queue_with(share), Ledger()
    for name, size, count in plan:
        if name != "take":
            ledger.requests.append(QueuedRequest([Row(size)] * count, 1.0, name))
            queue.add(ledger.requests[-1])
            continue
        for _ in range(count):
            if queue.num_rows:
                ledger.check(queue.take(10**6, size, now=0.0).rows, size, size // share)
    assert len(queue._recent) <= len("abcd")


@given(
    busy=st.integers(20, LONGEST),
    quiet=st.lists(
        st.tuples(st.sampled_from("bcd"), st.integers(1, LONGEST)), min_size=1, max_size=4
    ),
    budget=st.integers(1, 6000),
    share=shares,
)
def test_a_busy_task_gets_its_part_of_every_batch(
    busy: int, quiet: list[tuple[str, int]], budget: int, share: int
) -> None:
    queue = queue_with(share)
    queue.add(QueuedRequest([Row(busy)] * 2000, 1.0, "a"))
    for _ in range(5):
        for key, size in quiet:
            queue.add(QueuedRequest([Row(size)], 1.0, key))
        given: Counter[str] = Counter()
        for one, position in queue.take(10**6, budget, now=0.0).rows:
            given[str(one.key)] += one.rows[position].num_tokens
        is_full = given.total() + LONGEST > budget
        assert is_full or 2 * given["a"] >= max(given.values())
