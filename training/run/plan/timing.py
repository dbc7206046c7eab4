"""Measures how long a run will take, on some of its own batches, before it starts.

A few real steps and evaluations are taken, then every trained value and cached feature is put back:
the run is the same with and without the measurement, bit for bit. The duration is the sum of the
run's stages, each of them measured seconds times work that is known beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from deltas.backbone.tokenizer import TokenizedRow
from training.run import distributed
from training.run.evaluation import predict
from training.run.head.solver import solving_seconds
from training.run.loop.loop import make_optimizer, train_batch
from training.run.loop.schedule import batches
from training.run.plan.facts import SELECTION, TRAIN
from training.run.prepare import head_problem, num_start_rows
from training.run.task_model import Split, TaskModel

if TYPE_CHECKING:
    from training.run.train_delta import PreparedRun

_KNOWN_BATCHES = 128  # of the run, whose lengths stand for those of all
_STRATA = 6  # batches to measure, from short to long ones
_WARM_UP_SHARE = 8  # of a batch's rows, one in this many
_EVALUATED_TOKENS = 2048
_MOST_KEPT = 64  # rows whose frozen layers are timed
# A measured duration was between these shares of the estimate (docs/guide/training.md).
_LOW, _HIGH = 0.7, 1.5


@dataclass(frozen=True)
class Duration:
    """The expected seconds of each stage of a run, by name."""

    stages: dict[str, float]

    @property
    def seconds(self) -> float:
        """The whole run's seconds."""
        return sum(self.stages.values())

    @property
    def range(self) -> tuple[float, float]:
        """The seconds that a run takes at least and at most, if the machine's load stays."""
        return _LOW * self.seconds, _HIGH * self.seconds


def measure(run: PreparedRun, tokens: Mapping[str, float], limit_s: float) -> Duration:
    """Measure a prepared run's speed and return the duration that follows.

    Several processes that train together must all call this.

    Args:
        run: the run, which is left as it is.
        tokens: the number of tokens of each split, "train" and "selection" among them.
        limit_s: about how long the measurement may take.
    """
    with _undone(run.model):
        return _Probe(run, limit_s).duration(tokens)


@contextmanager
def _undone(model: TaskModel) -> Iterator[None]:
    """Put back a model's trained values and the random state, and empty its cache, at the end."""
    kept = {name: value.detach().clone() for name, value in model.parameters.items()}
    state = torch.get_rng_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.parameters.items():
                value.copy_(kept[name])
                value.grad = None
        model.cache.clear()
        torch.set_rng_state(state)


class _Probe:
    """Takes steps and evaluations of a run and keeps their times."""

    def __init__(self, run: PreparedRun, limit_s: float) -> None:
        self._run, self._limit_s = run, limit_s
        self._train, self._selection = (split.rows for split in run.splits)
        known = list(islice(batches(self._train, run.loop), _KNOWN_BATCHES))
        self._batches = sorted(known, key=self._num_tokens)
        self._keeps_features = run.model.can_keep_features([*self._train, *self._selection])

    def duration(self, tokens: Mapping[str, float]) -> Duration:
        """Measure, and return the duration of the whole run."""
        model, loop = self._run.model, self._run.loop
        evaluated = self._evaluated()
        frozen = self._frozen_seconds(evaluated.rows) if self._keeps_features else 0.0
        step = self._step_seconds() if loop.steps else 0.0
        predict(model, evaluated.rows[:1])  # the first call prepares kernels
        forward = _seconds(lambda: predict(model, evaluated.rows)) / _tokens(evaluated.rows)
        is_solved = loop.head_start == "solved"
        head = self._head_seconds(evaluated, forward * tokens[TRAIN]) if is_solved else 0.0
        others = sum(count for split, count in tokens.items() if split not in (TRAIN, SELECTION))
        return Duration(
            {
                "frozen layers": frozen * (tokens[TRAIN] + tokens[SELECTION]),
                "head": head,
                "training": step * loop.steps,
                # A solved head is evaluated before the first step.
                "evaluation": forward * tokens[SELECTION] * (loop.evals + is_solved),
                "validation": (frozen + forward) * others,
            }
        )

    def _evaluated(self) -> Split:
        """Return some selection rows, spread evenly, of about 2,048 tokens together."""
        total, labels = len(self._selection), self._run.splits[1].labels
        count = max(2, int(_EVALUATED_TOKENS * total / _tokens(self._selection)))
        positions = list(range(0, total, -(-total // count)))
        return Split([self._selection[position] for position in positions], labels[positions])

    def _frozen_seconds(self, evaluated: Sequence[TokenizedRow]) -> float:
        """Keep the features of all rows to be measured; returns seconds a token."""
        model = self._run.model
        model.keep_features(evaluated[:1])  # the first call prepares kernels
        # Rows that are kept already take no time.
        timed = [row for row in evaluated if row.input_ids != evaluated[0].input_ids]
        timed = timed or [row for row in self._train if row.input_ids != evaluated[0].input_ids]
        seconds = _seconds(lambda: model.keep_features(timed[:_MOST_KEPT]))
        model.keep_features([self._train[place] for batch in self._strata() for place in batch])
        return seconds / max(1, _tokens(timed[:_MOST_KEPT]))

    def _head_seconds(self, evaluated: Split, forward_s: float) -> float:
        """Return the seconds to solve the head; `forward_s` is a pass over all train rows."""
        run, total = self._run, len(self._train)
        count = num_start_rows(run.model, total)
        problem = head_problem(run.config, run.model, run.data.task, evaluated, run.weights)
        seconds = forward_s * count / total + solving_seconds(problem, count, chooses=True)
        if not run.loop.steps:  # then it is solved once more, on the selection rows as well
            seconds += solving_seconds(problem, total, chooses=False)
            every = [*run.splits[0].rows, *run.splits[1].rows]
            seconds += 0.0 if run.model.can_keep_features(every) else forward_s
        return seconds

    def _strata(self) -> list[list[int]]:
        """Return batches from short to long, the middle ones first, one for each stratum."""
        if not self._batches:
            return []
        places = [(number + 0.5) / _STRATA for number in range(_STRATA)]
        places.sort(key=lambda place: abs(place - 0.5))
        return [self._batches[int(place * len(self._batches))] for place in places]

    def _step_seconds(self) -> float:
        """Return the mean seconds of a step, by the tokens of the run's batches."""
        # Only runs with steps pay for the optimizer, whose making imports torch's compiler.
        self._optimizer = make_optimizer(self._run.model, self._run.loop)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        middle = self._strata()[0]
        small = middle[: max(1, len(middle) // _WARM_UP_SHARE)]
        self._take_step(small)  # the first call prepares kernels
        part = self._take_step(small)
        whole = part[1] * self._num_tokens(middle) / part[0]
        # A batch that takes too long is measured in two parts, from which its time follows.
        share = min(1.0, self._agreed(self._limit_s / _STRATA / max(whole, 1e-9)))
        samples, end = [], time.perf_counter() + self._limit_s
        for number, batch in enumerate(self._strata()):
            if number > 1 and not distributed.broadcast_flag(time.perf_counter() < end):
                break
            size = max(1, round(len(batch) * share / (1 + number % 2 if share < 1 else 1)))
            samples.append(self._take_step(batch[:size]))
        mean = float(np.mean([self._num_tokens(batch) for batch in self._batches]))
        return _at(mean, samples) if share < 1 else _in_proportion(mean, samples)

    def _agreed(self, share: float) -> float:
        """Return the same share of a batch in each process: 1, 1/2, 1/4, ... at most `share`."""
        agreed = 1.0
        while agreed > 1 / 64 and distributed.broadcast_flag(agreed > share):
            agreed /= 2
        return agreed

    def _take_step(self, positions: list[int]) -> tuple[int, float]:
        """Take a step at a learning rate of 0; returns its tokens and seconds."""
        run = self._run
        seconds = _seconds(
            lambda: train_batch(
                run.model,
                run.data.task,
                run.splits[0],
                positions,
                self._optimizer,
                run.loop,
                run.weights,
            )
        )
        return self._num_tokens(positions), seconds

    def _num_tokens(self, positions: Sequence[int]) -> int:
        return _tokens([self._train[position] for position in positions])


def _tokens(rows: Sequence[TokenizedRow]) -> int:
    return sum(row.num_tokens for row in rows)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _in_proportion(tokens: float, samples: Sequence[tuple[int, float]]) -> float:
    """Return the seconds of a step with that many tokens, at the samples' median speed."""
    return tokens * median(seconds / count for count, seconds in samples)


def _at(tokens: float, samples: Sequence[tuple[int, float]]) -> float:
    """Return the seconds of a step on the line through the samples, if it rises as it should."""
    counts, seconds = (np.array(part, dtype=np.float64) for part in zip(*samples, strict=True))
    if len(set(counts.tolist())) > 1:
        slope, start = np.polyfit(counts, seconds, 1)
        if slope > 0 and start > 0:
            return float(start + slope * tokens)
    return _in_proportion(tokens, samples)
