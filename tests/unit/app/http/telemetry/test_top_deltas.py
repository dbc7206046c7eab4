"""A limited number of deltas has series of their own, and no series ever goes down."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.http.telemetry.top_deltas import OTHER, DeltaKey, DeltaSeries

ROUND_S = 601.0


def key(number: int) -> DeltaKey:
    return f"task{number}", "bitfit"


class Rig:
    """One metric, on a clock that tests move."""

    def __init__(self, limit: int) -> None:
        self.now = 0.0
        self.series = DeltaSeries(limit, lambda: self.now)
        self.rows: Counter[DeltaKey] = Counter()

    def read(self, *, seconds: float = 15.0, **rows: int) -> dict[DeltaKey, float]:
        """Count rows of tasks by name, let time pass, and return the series."""
        self.rows.update({(name, "bitfit"): number for name, number in rows.items()})
        self.now += seconds
        return self.series.read({"rows": self.rows}, self.rows)["rows"]


def test_a_free_place_is_taken_with_all_that_was_counted() -> None:
    rig = Rig(3)
    assert rig.read() == {}
    assert rig.read(task1=5) == {key(1): 5, OTHER: 0}
    assert rig.read(task2=1) == {key(1): 5, key(2): 1, OTHER: 0}


def test_the_busiest_take_the_last_free_places() -> None:
    assert Rig(2).read(task1=1, task2=7, task3=9, task4=2) == {key(2): 7, key(3): 9, OTHER: 3}


def test_the_others_are_summed() -> None:
    rig = Rig(1)
    rig.read(task1=5)
    assert rig.read(task1=1, task2=3, task3=4) == {key(1): 6, OTHER: 7}


def test_a_busier_delta_takes_a_place_at_the_end_of_a_round_and_begins_at_zero() -> None:
    rig = Rig(1)
    rig.read(task1=5)
    assert rig.read(task2=1000) == {key(1): 5, OTHER: 1000}, "the round is not over"
    assert rig.read(task1=1, seconds=ROUND_S) == {key(1): 6, key(2): 0, OTHER: 1000}
    assert rig.read(task2=10, task1=1) == {key(1): 6, key(2): 10, OTHER: 1001}


def test_a_series_ends_a_round_after_its_last_count_for_every_reader() -> None:
    rig = Rig(1)
    rig.read(task1=5)
    ended = rig.read(task1=1, task2=1000, seconds=ROUND_S)
    assert rig.read() == ended == {key(1): 6, key(2): 0, OTHER: 1000}, "another Prometheus"
    assert rig.read(seconds=ROUND_S) == {key(2): 0, OTHER: 1000}


def test_a_delta_that_comes_back_goes_on_where_its_series_ended() -> None:
    rig = Rig(1)
    rig.read(task1=5)
    rig.read(task2=1000, seconds=ROUND_S)
    assert rig.read(task1=9000, seconds=ROUND_S) == {key(1): 5, key(2): 0, OTHER: 10_000}
    assert rig.read(task1=2, task2=1) == {key(1): 7, key(2): 0, OTHER: 10_001}


def test_a_delta_that_is_little_busier_does_not_take_a_place() -> None:
    rig = Rig(1)
    rig.read(task1=500)
    assert set(rig.read(task2=999, seconds=ROUND_S)) == {key(1), OTHER}
    assert set(rig.read(task1=500, task2=501, seconds=ROUND_S)) == {key(1), OTHER}


def test_old_traffic_is_forgotten() -> None:
    rig = Rig(1)
    rig.read(task1=1_000_000, seconds=ROUND_S)
    for _ in range(20):
        rig.read(seconds=ROUND_S)
    assert key(2) in rig.read(task2=10, seconds=ROUND_S)


def test_a_task_may_be_called_other() -> None:
    rig = Rig(2)
    assert rig.read(other=3) == {("other", "bitfit"): 3, OTHER: 0}


reads = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from([f"task{n}" for n in range(6)]), st.integers(0, 50)),
        st.sampled_from([1.0, ROUND_S]),
    ),
    max_size=30,
)


@given(limit=st.integers(1, 6), reads=reads)
def test_no_series_ever_goes_down_and_nothing_is_lost(
    limit: int, reads: list[tuple[dict[str, int], float]]
) -> None:
    rig = Rig(limit)
    last: dict[DeltaKey, float] = {}
    for rows, seconds in reads:
        series = rig.read(seconds=seconds, **rows)
        assert len(series) <= 2 * limit + 1
        assert len(rig.series.top.shown) <= limit
        assert all(value >= last.get(name, 0) for name, value in series.items())
        last |= series
        assert sum(last.values()) == rig.rows.total()
