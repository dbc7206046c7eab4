"""Estimates how long the runs of a study take, before they are made.

The cost of a run is counted in forward passes of rows. The seconds of a pass are measured on
finished runs, as alike as there are, and assumed where none has finished. `training.sweep` shows
the estimate in a dry run, `training.study.run_pool` after each run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import median
from typing import Any

from training.data.tasks import TASKS
from training.options import FitConfig, default_epochs, num_evaluations
from training.study.results import Run

# Seconds of a forward pass of one row if the study assumes none; a guess, and called one.
GUESSED_SECONDS = 0.01
_TOKENS_A_ROW = 30  # about the mean of the GLUE tasks; only estimates depend on it
# Forward passes that a row of a step costs. Rules that train whole matrices need their gradients
# and update them. Measured on a CPU with a network of BERT base's size and batches of 8 rows: 3.3
# to 5.3 for `full`, 2.2 to 3.2 for `bitfit`.
_WHOLE_MATRICES = {"full", "top", "attention", "ffn", "params"}
_PASSES_WHOLE, _PASSES_OTHERS = 5, 3


class Estimate:
    """Predicts durations of runs from finished runs over the same backbone.

    `assumed` are the seconds of one row's forward pass, by task. A finished run corrects them for
    all tasks, by the ratio of its duration to the assumed one.
    """

    def __init__(self, runs: Mapping[str, Run], assumed: Mapping[str, float] | None = None) -> None:
        self._assumed = assumed or {}
        ratios: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for run in runs.values():
            if run.outcome is None or run.outcome.resumed:
                continue
            ratio = run.outcome.seconds / self._assumed_seconds(run.options)
            for likeness in _likenesses(run.options):
                ratios[likeness].append(ratio)
        self._ratio = {likeness: median(found) for likeness, found in ratios.items()}

    def seconds(self, options: Mapping[str, Any]) -> float:
        """Return the expected duration of a run."""
        ratios = (self._ratio[mark] for mark in _likenesses(options) if mark in self._ratio)
        return next(ratios, 1.0) * self._assumed_seconds(options)

    def basis(self, options: Mapping[str, Any]) -> str:
        """Return the basis of a run's estimate, in words."""
        if any(mark in self._ratio for mark in _likenesses(options)):
            return "from the finished runs"
        if options["task"] in self._assumed:
            return "by the study file's assumption"
        return "a guess: nothing is measured yet"

    def _assumed_seconds(self, options: Mapping[str, Any]) -> float:
        return forward_passes(options) * self._assumed.get(options["task"], GUESSED_SECONDS)


def forward_passes(options: Mapping[str, Any]) -> float:
    """Return the cost of a run in forward passes of rows, at least one.

    A row of a step counts five passes if whole matrices train, otherwise three; a row of an
    evaluation counts one. Of a head alone each row counts one, because its features are cached.
    """
    config = FitConfig.model_validate(dict(options))
    task = TASKS[config.task]
    rows = config.train_rows or task.canonical_rows[task.train_split]
    dev = sum(task.canonical_rows[split] for split in task.validation_splits)
    if config.freeze == "head":
        return float(rows + dev)
    selection = min(config.selection_share * rows, config.max_selection_rows)
    trained = round(rows - selection)
    epochs = config.epochs or default_epochs(trained, trained * _TOKENS_A_ROW)
    rules = {part.partition(":")[0].partition("@")[0] for part in config.freeze.split("+")}
    passes_a_row = _PASSES_WHOLE if rules & _WHOLE_MATRICES else _PASSES_OTHERS
    steps = passes_a_row * epochs * (rows - selection)
    return float(max(1.0, steps + num_evaluations(config, epochs) * selection + dev))


def _likenesses(options: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return what a run may have in common with other runs, closest likeness first."""
    backbone, task = str(options.get("backbone", "")), options["task"]
    freeze, rows = str(options["freeze"]), options.get("train_rows")
    rule = freeze.partition(":")[0].partition("@")[0]
    marks: list[tuple[Any, ...]]
    marks = [(task, freeze, rows), (task, rule, rows), (task, rule), (task,), ()]
    return [(backbone, *mark) for mark in marks]
