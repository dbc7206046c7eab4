"""The history of a run: bounded, equal after a resume, and with the best state always in it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from deltas.manifest import RunHistory
from training.run.loop.history import MAX_POINTS, HistoryRecorder, point_ends
from training.run.loop.schedule import LoopConfig, evaluation_steps

OPTIONS = LoopConfig(
    steps=1000,
    batch_size=4,
    learning_rate=0.1,
    head_learning_rate=0.1,
    warmup=0.1,
    weight_decay=0.0,
    dropout=0.0,
    evals=10,
    seed=0,
)
SHAPES = [(1, 1), (3, 3), (7, 2), (49, 7), (50, 50), (51, 51), (1000, 10), (1000, 200), (997, 61)]


def options(steps: int, evals: int) -> LoopConfig:
    return replace(OPTIONS, steps=steps, evals=evals)


def steps_of(config: LoopConfig) -> Iterator[tuple[int, float, dict[str, float] | None]]:
    """The same made-up steps for equal options: number, loss, and metrics if evaluated."""
    draw, evaluated = random.Random(config.steps), evaluation_steps(config)
    for step in range(1, config.steps + 1):
        metrics = {"loss": draw.random(), "accuracy": draw.random()}
        yield step, draw.random(), metrics if step in evaluated else None


def recorded(config: LoopConfig, stops: tuple[int, ...] = (), last: int = 10**9) -> RunHistory:
    """The history of a run up to a step, taken up from its state after each of `stops`."""
    recorder = HistoryRecorder(config, "accuracy")
    recorder.add_start({"loss": 2.0, "accuracy": 0.0})
    for step, loss, metrics in steps_of(config):
        if step > last:
            break
        recorder.add(step, loss, metrics)
        if step in stops:
            state = recorder.state()
            recorder = HistoryRecorder(config, "accuracy")
            recorder.restore(state)
    history = recorder.finish(min(last, config.steps))
    assert history is not None
    return history


@pytest.mark.parametrize(("steps", "evals"), SHAPES)
def test_a_history_is_bounded_and_ends_with_the_run(steps: int, evals: int) -> None:
    config = options(steps, evals)
    history = recorded(config)
    assert min(steps, MAX_POINTS // 2) <= len(history.train.step) <= MAX_POINTS
    assert len(history.selection.step) <= MAX_POINTS + 1
    assert history.train.step[-1] == steps
    if evals <= MAX_POINTS:
        assert set(history.selection.step) == {0} | evaluation_steps(config)
        assert evaluation_steps(config) <= point_ends(config)


def test_the_most_points_take_few_kilobytes() -> None:
    history = recorded(options(123_456, 50))
    assert len(history.train.step) == MAX_POINTS
    assert len(history.model_dump_json()) < 3_000


@pytest.mark.parametrize(("steps", "evals"), SHAPES)
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(steps: int, evals: int) -> None:
    config = options(steps, evals)
    whole = recorded(config)
    for number in range(5):
        stops = random.Random(number).sample(range(1, steps + 1), min(3, steps))
        assert recorded(config, tuple(stops)) == whole


@pytest.mark.parametrize(("steps", "evals"), SHAPES)
def test_a_point_is_the_mean_of_its_steps_and_the_best_evaluation_is_kept(
    steps: int, evals: int
) -> None:
    config = options(steps, evals)
    history, seen = recorded(config), list(steps_of(config))
    start = 0
    for end, loss in zip(history.train.step, history.train.loss, strict=True):
        losses = [each for _, each, _ in seen[start:end]]
        assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        start = end
    best = max(((metrics["accuracy"], step) for step, _, metrics in seen if metrics))
    at = history.selection.step.index(best[1])
    assert history.selection.metric[at] == max(history.selection.metric)
    assert history.selection.metric[at] == pytest.approx(best[0], rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = recorded(OPTIONS).train.learning_rate
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert list(rates[: peak + 1]) == sorted(rates[: peak + 1])
    assert list(rates[peak:]) == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.001


def test_a_run_that_stops_early_ends_with_its_last_step() -> None:
    whole, part = recorded(options(1000, 10)), recorded(options(1000, 10), last=610)
    assert part.train.step[:-1] == whole.train.step[: len(part.train.step) - 1]
    assert part.train.step[-1] == 610
    assert part.selection.step[-1] == 600


def test_without_steps_there_is_no_history() -> None:
    recorder = HistoryRecorder(options(0, 0), "accuracy")
    recorder.add_start({"loss": 2.0, "accuracy": 0.0})
    assert recorder.finish(0) is None


def test_points_that_are_no_numbers_are_left_out() -> None:
    recorder = HistoryRecorder(options(2, 2), "accuracy")
    recorder.add(1, 0.5, {"loss": math.nan, "accuracy": 0.0})
    recorder.add(2, math.nan, {"loss": math.inf, "accuracy": 0.0})
    history = recorder.finish(2)
    assert history is not None
    assert history.train.step == (1,)
    assert history.selection.step == ()
