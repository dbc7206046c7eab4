"""Records the history of a run: loss and learning rate by step, and the scores of its evaluations.

A history has a bounded number of points. The steps at which points end are chosen from the options
before the run, and a checkpoint holds the points so far, so a resumed run records the very history
of an uninterrupted one. `training.run.loop.loop` records, `training.run.train_delta` writes the
result into the manifest. The study keeps every evaluation itself (`training.study.trial`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from deltas.manifest import RunHistory, SelectionCurve, TrainingCurve
from training.run.loop.schedule import LoopConfig, evaluation_steps, rate_factor

MAX_POINTS = 50  # of each curve; the starting head's evaluation comes on top

Point = tuple[int, float, float]  # step, loss, and the learning rate or the metric


def point_ends(config: LoopConfig) -> set[int]:
    """Return the steps with which the points of a run end.

    They are the evaluated steps, with equal parts between them if there are few evaluations, or
    every second, third, ... of them if there are many. The last step is one of them.
    """
    evaluated = sorted(evaluation_steps(config), reverse=True)
    if not evaluated:
        return set()
    kept = sorted(evaluated[:: math.ceil(len(evaluated) / MAX_POINTS)])
    parts = MAX_POINTS // len(kept)
    return {
        start + math.ceil((end - start) * part / parts)
        for start, end in pairwise([0, *kept])
        for part in range(1, parts + 1)
    }


class HistoryRecorder:
    """Records a run step by step; `finish` returns the result.

    A point has the mean loss of its steps, and the learning rate of its last one. If a point has
    several evaluations, the best of them is kept, so the best state of the run is always there.
    `metric` is the name of the primary metric.
    """

    def __init__(self, config: LoopConfig, metric: str) -> None:
        self._config = config
        self._metric = metric
        self._ends = point_ends(config)
        self._train: list[Point] = []
        self._selection: list[Point] = []
        self._losses: list[float] = []  # since the last point
        self._best: Point | None = None  # evaluation since the last point
        self._is_whole = True

    def add_start(self, metrics: Mapping[str, float]) -> None:
        """Record the evaluation of the state before the first step."""
        self._selection.append((0, metrics["loss"], metrics[self._metric]))

    def add(self, step: int, loss: float, metrics: Mapping[str, float] | None) -> None:
        """Record a step: the loss of its rows, and the metrics if it was evaluated."""
        self._losses.append(loss)
        if metrics is not None:
            found = step, metrics["loss"], metrics[self._metric]
            if self._best is None or (found[2], -found[1]) > (self._best[2], -self._best[1]):
                self._best = found
        if step in self._ends:
            self._end_point(step)

    def finish(self, step: int) -> RunHistory | None:
        """Return the history of a run that ended after a step.

        Returns None if no step was taken, or if a checkpoint of an earlier version, which recorded
        no history, was resumed. A diverged run's points that are no numbers are left out.
        """
        if self._losses:
            self._end_point(step)
        if not (self._is_whole and self._train):
            return None
        steps, losses, rates = _columns(self._train)
        evaluated, selection_losses, metrics = _columns(self._selection)
        return RunHistory(
            train=TrainingCurve(step=steps, loss=losses, learning_rate=rates),
            selection=SelectionCurve(step=evaluated, loss=selection_losses, metric=metrics),
        )

    def state(self) -> str:
        """Return all that was recorded as JSON, "" if the beginning is missing."""
        if not self._is_whole:
            return ""
        return json.dumps([self._train, self._selection, self._losses, self._best])

    def restore(self, state: str) -> None:
        """Continue from the state of an earlier process."""
        self._is_whole = bool(state)
        if state:
            train, selection, self._losses, best = json.loads(state)
            self._train = [(step, loss, rate) for step, loss, rate in train]
            self._selection = [(step, loss, metric) for step, loss, metric in selection]
            self._best = None if best is None else (best[0], best[1], best[2])

    def _end_point(self, step: int) -> None:
        rate = self._config.learning_rate * rate_factor(step, self._config)
        self._train.append((step, sum(self._losses) / len(self._losses), rate))
        if self._best is not None:
            self._selection.append(self._best)
        self._losses, self._best = [], None


def _columns(
    points: Sequence[Point],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """Return steps, first and second values, rounded to six significant digits."""
    kept = [point for point in points if all(map(math.isfinite, point))]
    first, second = (tuple(float(f"{point[column]:.6g}") for point in kept) for column in (1, 2))
    return tuple(point[0] for point in kept), first, second
