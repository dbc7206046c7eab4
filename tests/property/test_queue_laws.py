"""Laws of the row queue, whatever is added, removed and taken: nothing lost, nobody starved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.batching.queue import QUANTUM_TOKENS, RECENT_BATCHES, RowQueue, Ticket

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


# How much of a full batch a short one is.
shares = st.sampled_from([1, 2, 5, 1000])


def queue_with(share: int) -> RowQueue[Ticket[Row]]:
    return RowQueue(lambda max_tokens: max_tokens // share)


@given(st.lists(actions, max_size=40), shares)
def test_each_row_is_taken_once_and_the_counts_are_right(
    plan: list[tuple[str, Any, Any]], share: int
) -> None:
    line = queue_with(share)
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
    taken += line.take(10**6, 10**12, now=0.0)[0]
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
    share=shares,
)
def test_a_row_waits_for_one_turn_of_each_other_task(
    heavy: list[list[int]], others: int, light: int, budget: int, share: int
) -> None:
    """Whatever the others have waiting and go on adding."""
    line = queue_with(share)

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


@dataclass
class Ledger:
    """Keeps the books of a queue's tasks beside it, to say when a batch must be a short one."""

    tickets: list[Ticket[Row]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)  # batch with rows of a task
    batches: int = 0
    given: Counter[str] = field(default_factory=Counter)  # tokens of each task in this batch

    def next_sizes(self) -> list[tuple[str, int]]:
        """Task and length of every row that may come next."""
        waiting = [one for one in self.tickets if one.num_taken < len(one.rows)]
        return [(str(one.key), one.rows[one.num_taken].num_tokens) for one in waiting]

    def must_be_short(self, left: set[str]) -> bool:
        """One task is left, others were there lately, and it has had its share of this batch."""
        if len(left) != 1:
            return False
        (alone,) = left
        others = [task for task in self.last if task != alone]
        lately = any(self.batches - self.last[task] <= RECENT_BATCHES for task in others)
        return lately and 2 * self.given[alone] >= max(self.given.values(), default=1)

    def check(self, batch: list[tuple[Ticket[Row], int]], budget: int, short: int) -> None:
        """Row by row, as it was put together; `batch` has left the tickets already."""
        left = Counter(task for task, _ in self.next_sizes())
        left.update(str(one.key) for one, _ in batch)
        self.batches += 1
        self.given.clear()
        for one, position in batch:
            size = one.rows[position].num_tokens
            total = self.given.total() + size
            assert total <= budget or not self.given
            if self.must_be_short({task for task, count in left.items() if count}):
                assert total <= short, "one task has filled a batch that others wait for"
            self.given[str(one.key)] += size
            self.last[str(one.key)] = self.batches
            left[str(one.key)] -= 1
        if coming := self.next_sizes():
            longest = max(size for _, size in coming)
            allowed = short if self.must_be_short({task for task, _ in coming}) else budget
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
def test_one_task_alone_fills_short_batches_and_all_others_are_full(
    plan: list[tuple[str, int, int]], share: int
) -> None:
    line, ledger = queue_with(share), Ledger()
    for name, size, count in plan:
        if name != "take":
            ledger.tickets.append(Ticket([Row(size)] * count, 1.0, name))
            line.add(ledger.tickets[-1])
            continue
        for _ in range(count):
            if line.num_rows:
                ledger.check(line.take(10**6, size, now=0.0)[0], size, size // share)
    assert len(line._recent) <= len("abcd")


@given(
    busy=st.integers(20, LONGEST),
    quiet=st.lists(
        st.tuples(st.sampled_from("bcd"), st.integers(1, LONGEST)), min_size=1, max_size=4
    ),
    budget=st.integers(1, 6000),
    share=shares,
)
def test_a_task_with_much_waiting_gets_its_part_of_every_batch(
    busy: int, quiet: list[tuple[str, int]], budget: int, share: int
) -> None:
    """However much the others' rows fill of it."""
    line = queue_with(share)
    line.add(Ticket([Row(busy)] * 2000, 1.0, "a"))
    for _ in range(5):
        for key, size in quiet:
            line.add(Ticket([Row(size)], 1.0, key))
        given: Counter[str] = Counter()
        for one, position in line.take(10**6, budget, now=0.0)[0]:
            given[str(one.key)] += one.rows[position].num_tokens
        is_full = given.total() + LONGEST > budget
        assert is_full or 2 * given["a"] >= max(given.values())
