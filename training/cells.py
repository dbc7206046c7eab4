"""The cells of a study's tables: the seeds of one strategy on one task at one size, summed up.

The learning rate of a cell is chosen as the sweep chose it: by the selection rows of the seeds that
every rate has. The other rates' runs are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, median, stdev

from training.results import Outcome, Run
from training.study import choose_rate

MAIN = "main"
# Shown first and in this order; others follow by name.
_ORDER = ("full", "bitfit", "layernorm", "random:0.001", "head")


@dataclass(frozen=True)
class Cell:
    """The runs that differ in nothing but their seed.

    Attributes:
        part: of the study.
        task: GLUE's name.
        method: strategy as served, with the delta that it started from if it did.
        train_rows: that the study asked for; None for all of the task's.
        rate: the chosen learning rate.
        tried: every rate that was tried, with its mean metric on the selection rows of the seeds
            that decided.
        runs: by seed, at least one.
    """

    part: str
    task: str
    method: str
    backbone: str
    train_rows: int | None
    rate: float
    tried: dict[float, float]
    runs: dict[int, Run]

    @cached_property
    def outcomes(self) -> dict[int, Outcome]:
        """What the runs gave, by seed."""
        return {seed: run.outcome for seed, run in self.runs.items() if run.outcome}

    @property
    def first(self) -> Outcome:
        """Of the lowest seed; stands for what all seeds have in common."""
        return next(iter(self.outcomes.values()))

    @property
    def scores(self) -> dict[int, float]:
        """The primary metric on the dev set, by seed."""
        return {seed: outcome.dev_score for seed, outcome in self.outcomes.items()}

    @property
    def mean(self) -> float:
        """Of the scores."""
        return fmean(self.scores.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation of the scores (n - 1 in the denominator); None for one seed."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None

    @property
    def seconds(self) -> float | None:
        """Time of the fastest run that was not stopped in between; None if all were.

        Equal runs do equal work: whatever else a shared machine does can only add to it.
        """
        times = [outcome.seconds for outcome in self.outcomes.values() if not outcome.resumed]
        return min(times, default=None)

    @property
    def cpu_seconds(self) -> float | None:
        """The same in seconds of a processor; None where no such run has it."""
        times = [
            outcome.cpu_seconds
            for outcome in self.outcomes.values()
            if outcome.cpu_seconds is not None and not outcome.resumed
        ]
        return min(times, default=None)

    @property
    def peak_bytes(self) -> float:
        """Median of the runs' peak memory."""
        return median(outcome.peak_bytes for outcome in self.outcomes.values())

    @property
    def trained_share(self) -> float:
        """Trained over all parameters, the head included in both."""
        return self.first.trained / self.first.total


def make_cells(runs: Iterable[Run]) -> list[Cell]:
    """Group finished runs; failed ones are left out, and rates that lack a seed of the others too.

    Returns:
        Cells by part and task in the order of the runs, then by method and size.
    """
    groups: dict[tuple[str, str, str, str, int | None], dict[float, dict[int, Run]]] = {}
    for run in runs:
        if run.outcome is None:
            continue
        mark = (
            run.part,
            run.outcome.task,
            _method(run),
            run.outcome.backbone,
            run.options.get("train_rows"),
        )
        rates = groups.setdefault(mark, {})
        rates.setdefault(run.outcome.learning_rate, {})[run.options["seed"]] = run
    cells = []
    for mark, by_rate in groups.items():
        common = sorted(set.intersection(*(set(seeds) for seeds in by_rate.values())))
        comparable = {rate: [seeds[seed] for seed in common] for rate, seeds in by_rate.items()}
        if not common:  # the rate was taken from elsewhere, or the sweep is not that far
            most = max(len(seeds) for seeds in by_rate.values())
            comparable = {
                rate: list(seeds.values()) for rate, seeds in by_rate.items() if len(seeds) == most
            }
        rate = choose_rate(comparable)
        tried = {rate: _selection_mean(runs) for rate, runs in sorted(comparable.items())}
        cells.append(Cell(*mark, rate, tried, dict(sorted(by_rate[rate].items()))))
    parts = list(dict.fromkeys(cell.part for cell in cells))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    return sorted(
        cells,
        key=lambda cell: (
            parts.index(cell.part),
            tasks.index(cell.task),
            method_place(cell.method),
            cell.train_rows or 0,
        ),
    )


def _selection_mean(runs: Iterable[Run]) -> float:
    return fmean(run.outcome.selection_score[0] for run in runs if run.outcome)


def method_place(method: str) -> tuple[int, str]:
    """Where a method stands in tables and figures."""
    known = method in _ORDER
    return (_ORDER.index(method), "") if known else (len(_ORDER), method)


def _method(run: Run) -> str:
    assert run.outcome is not None
    start = PurePath(str(run.options.get("init_from", "")))
    return run.outcome.strategy + (f" from {start.parent.name}/{start.stem}" if start.name else "")
