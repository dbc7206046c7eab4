"""How long a run will take, judged by the finished runs that are most like it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from training.config import default_epochs
from training.results import Run
from training.tasks import TASKS

# Seconds for a row in a training step where nothing was measured yet; a guess, and called one.
GUESSED_SECONDS_A_ROW = 0.03


class Estimate:
    """Seconds for a row that a run visits, from finished runs."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        measured: dict[tuple[Any, ...], list[float]] = {}
        for run in runs.values():
            if run.outcome is None or run.outcome.resumed:
                continue
            cost = run.outcome.seconds / max(1.0, visited_rows(run.options))
            for likeness in _likenesses(run.options):
                measured.setdefault(likeness, []).append(cost)
        self._cost = {likeness: median(costs) for likeness, costs in measured.items()}

    @property
    def is_guess(self) -> bool:
        """Whether nothing was measured yet."""
        return not self._cost

    def seconds(self, options: Mapping[str, Any]) -> float:
        """Expected duration of a run."""
        costs = (self._cost[mark] for mark in _likenesses(options) if mark in self._cost)
        return next(costs, GUESSED_SECONDS_A_ROW) * visited_rows(options)


def visited_rows(options: Mapping[str, Any]) -> float:
    """Rows times epochs, as far as they cost: below a head, features are computed once."""
    task = TASKS[options["task"]]
    rows = options.get("train_rows") or task.canonical_rows[task.train_split]
    epochs = options.get("epochs") or default_epochs(rows)
    return float(rows if options["freeze"] == "head" else rows * epochs)


def _likenesses(options: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What a run has in common with others, most telling first."""
    task, rows = options["task"], options.get("train_rows")
    freeze = str(options["freeze"])
    kind = freeze.partition(":")[0].partition("@")[0]
    return [(task, freeze, rows), (task, kind, rows), (task, kind), (task,), ()]


def in_words(seconds: float) -> str:
    """A duration for people: "45 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
