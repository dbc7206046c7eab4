"""Choosing threads and tokens by measurement: what is chosen from which speeds."""

from __future__ import annotations

import pytest

from app.engine.tuning import BUDGETS, best_of, choose_budget, choose_threads, choose_workers


def test_the_smallest_nearly_fastest_budget_is_chosen() -> None:
    speeds = {512: 100_000, 1024: 150_000, 2048: 198_000, 4096: 200_000, 8192: 201_000}
    choice = choose_budget(lambda tokens: tokens / speeds[tokens], tuple(speeds))
    assert choice.value == 2048
    assert choice.tokens_per_s == pytest.approx(speeds)


def test_batches_that_take_too_long_are_not_even_tried_further() -> None:
    tried = []

    def seconds(tokens: int) -> float:
        tried.append(tokens)
        return tokens / 5_000  # every batch is equally efficient, and slow

    choice = choose_budget(seconds, (512, 1024, 2048, 4096))
    assert choice.value == 512
    assert set(tried) == {512, 1024, 2048}  # 2048 took 0.41 s


def test_a_slow_machine_still_gets_a_budget() -> None:
    assert choose_budget(lambda tokens: tokens / 10.0).value == BUDGETS[0]


def test_the_fewest_nearly_fastest_threads_are_chosen() -> None:
    seconds = {1: 1.0, 2: 0.5, 4: 0.3, 8: 0.29, 16: 0.6}
    choice = choose_threads(seconds.__getitem__, 1000, 16)
    assert choice.value == 4
    assert sorted(choice.tokens_per_s) == [1, 2, 4, 8, 16]
    assert str(choice).startswith("4 (tokens/s with 1: 1,000, 2: 2,000, ")


@pytest.mark.parametrize("cpus", [1, 2, 3, 6, 12])
def test_all_processors_are_among_the_candidates(cpus: int) -> None:
    assert choose_threads(lambda count: 1.0 / count, 1, cpus).value == cpus


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0, 2: 0.97}, 2),
        ({1: 1.0, 2: 1.04}, 2),  # side by side they lose less to a busy event loop
        ({1: 1.0, 2: 1.06}, 1),
        ({1: 1.0, 2: 0.8, 4: 0.83, 8: 0.9}, 4),
    ],
)
def test_the_most_nearly_fastest_workers_are_chosen(
    seconds: dict[int, float], expected: int
) -> None:
    choice = choose_workers(seconds.__getitem__, 1000, max(seconds))
    assert choice.value == expected
    assert list(choice.tokens_per_s) == list(seconds)


def test_one_thread_has_one_worker() -> None:
    assert choose_workers({1: 1.0}.__getitem__, 1000, 1).value == 1


def test_the_first_run_and_disturbed_ones_do_not_count() -> None:
    seconds = iter([0.001, 5.0, 2.0])
    assert best_of(lambda: next(seconds)) == 2.0
