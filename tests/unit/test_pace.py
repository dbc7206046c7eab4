"""The pace: which batches tell something, and how long a wait is made of it."""

from __future__ import annotations

import pytest

from app.pace import Pace


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
