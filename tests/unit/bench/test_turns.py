"""Simulated effect of a busy task on the others, with capped batches and without."""

from __future__ import annotations

import pytest

from tests.bench.turns import (
    BUSY,
    MAX_QUEUE_S,
    SCENES,
    Engine,
    Outcome,
    Scene,
    arrivals,
    ratio,
    simulate,
)

SECONDS = 60.0
WANTED = 2.0  # factor by which a task with ten times the traffic may slow down the others


def full(max_tokens: int) -> int:
    """Cap no batch."""
    return max_tokens


def lightest(run: Outcome) -> float:
    return run.percentile(0.99, *run.others)


@pytest.mark.parametrize("scene", SCENES[:4], ids=lambda scene: scene.name)
def test_peers_row_30_ten_times_the_traffic_of_a_task_does_not_double_the_others_p99(
    scene: Scene,
) -> None:
    evenly, busily = scene.play(SECONDS)
    evenly_full, busily_full = scene.play(SECONDS, full)
    assert ratio(evenly_full, busily_full) > 1.1 * WANTED, "the rule is not needed here"
    assert ratio(evenly, busily) < 0.95 * WANTED
    # The price is time only: no traffic is refused, and equal tasks notice nothing.
    assert not busily.refused
    assert busily.tokens_per_s == pytest.approx(busily_full.tokens_per_s, rel=0.005)
    assert lightest(evenly) == pytest.approx(lightest(evenly_full), rel=0.02)
    assert busily.percentile(0.99, BUSY) < 0.1 * MAX_QUEUE_S


@pytest.mark.parametrize("scene", SCENES[4:], ids=lambda scene: scene.name)
def test_on_a_full_engine_the_busy_task_waits_and_little_throughput_is_lost(scene: Scene) -> None:
    evenly, busily = scene.play(SECONDS)
    _, busily_full = scene.play(SECONDS, full)
    assert ratio(evenly, busily) < 1.1 * WANTED
    assert lightest(busily) < 0.5 * lightest(busily_full)
    assert set(busily.refused) == {BUSY}
    assert busily.tokens_per_s > 0.82 * busily_full.tokens_per_s
    # The wait that admission estimated is about the real one.
    assert busily.percentile(0.99, BUSY) < 1.3 * MAX_QUEUE_S


def test_an_overloaded_task_by_itself_loses_nothing() -> None:
    engine = Engine()
    alone, alone_full = (simulate(engine, [2 * engine.rows_per_s], 20.0, *s) for s in ((), (full,)))
    assert alone == alone_full
    assert alone.tokens_per_s > 0.98 * engine.max_tokens / engine.seconds(engine.max_tokens)


def test_equally_overloaded_tasks_lose_nothing() -> None:
    engine = Engine()
    rates = [3 * engine.rows_per_s / 9] * 9
    evenly, evenly_full = (simulate(engine, rates, 20.0, *short) for short in ((), (full,)))
    assert evenly.tokens_per_s == pytest.approx(evenly_full.tokens_per_s, rel=0.01)


def test_rows_come_at_the_rates_asked_for_and_are_all_accounted_for() -> None:
    rates = [50.0, 5.0]
    coming = list(arrivals(rates, 200.0))
    assert [row.came for _, row in coming] == sorted(row.came for _, row in coming)
    outcome = simulate(Engine(), rates, 200.0)
    for task, rate in enumerate(rates):
        sent = sum(other == task for other, _ in coming)
        assert sent == pytest.approx(200 * rate, rel=0.1)
        assert len(outcome.seconds[task]) + outcome.refused[task] == sent
    assert min(map(min, outcome.seconds.values())) > Engine().batch_s
    assert outcome == simulate(Engine(), rates, 200.0)
