"""Tuning: which candidates are measured, and which one is chosen for which speeds."""

from __future__ import annotations

import pytest

from app.engine.tuning import BUDGETS, THREADS, TOKENS, WORKERS, best_of, choose


def test_the_smallest_nearly_fastest_budget_is_chosen() -> None:
    speeds = {512: 1e5, 1024: 1.5e5, 2048: 1.98e5, 4096: 2e5, 8192: 2.01e5, 16384: 2.02e5}
    measured = choose(TOKENS, lambda tokens: tokens / speeds[tokens])
    assert measured.value == 2048
    assert measured.tokens_per_s == pytest.approx(speeds)


def test_budgets_beyond_the_longest_batch_are_not_tried() -> None:
    tried = []

    def seconds(tokens: int) -> float:
        tried.append(tokens)
        return tokens / 5_000  # every batch is equally efficient, and slow

    assert choose(TOKENS, seconds).value == 512
    assert set(tried) == {512, 1024, 2048}  # 2048 took 0.41 s


def test_a_slow_machine_still_gets_a_budget() -> None:
    assert choose(TOKENS, lambda tokens: tokens / 10.0).value == BUDGETS[0]


def test_the_fewest_nearly_fastest_threads_are_chosen() -> None:
    seconds = {1: 1.0, 2: 0.5, 4: 0.3, 8: 0.29, 16: 0.6}
    measured = choose(THREADS, seconds.__getitem__, 1000, 16)
    assert measured.value == 4
    assert sorted(measured.tokens_per_s) == [1, 2, 4, 8, 16]
    assert str(measured).startswith("4 (tokens/s with 1: 1,000, 2: 2,000, ")


@pytest.mark.parametrize("cpus", [1, 2, 3, 6, 12])
def test_all_cores_are_among_the_candidates(cpus: int) -> None:
    assert choose(THREADS, lambda count: 1.0 / count, 1, cpus).value == cpus


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 0.97}, 2),
        ({1: 1.0, 2: 1.04}, 2),  # several passes lose less to a busy event loop
        ({1: 1.0, 2: 1.06}, 1),
        ({1: 1.0, 2: 0.8, 4: 0.83, 8: 0.9}, 4),
    ],
)
def test_the_most_nearly_fastest_workers_are_chosen(
    seconds: dict[int, float], expected: int
) -> None:
    measured = choose(WORKERS, seconds.__getitem__, 1000, max(seconds))
    assert measured.value == expected
    assert list(measured.tokens_per_s) == list(seconds)


def test_one_thread_has_one_worker() -> None:
    assert choose(WORKERS, {1: 1.0}.__getitem__, 1000, 1).value == 1


def test_the_first_run_and_disturbed_ones_do_not_count() -> None:
    seconds = iter([0.001, 5.0, 2.0])
    assert best_of(lambda: next(seconds)) == 2.0
