"""Aggregates a study's runs: one cell per strategy, task and size, over its seeds.

Runs of one cell differ only in seed and learning rate. The rate is chosen as the sweep chose it, by
the selection rows of the seeds that every rate has; runs with other rates are left out.
`not_comparable` warns if a study mixes runs that don't compare. Tables of cells are made by
`training.study.tables`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, median, stdev
from typing import NamedTuple, TypeVar

from training.study.plan import choose_rate
from training.study.results import Run, RunOutcome

MAIN = "main"
ZOO = "zoo"  # the part of one seed, on samples: the served deltas, also for tasks not in the study
# Strategies that come first, in this order; others follow by name.
_ORDER = ("full", "bitfit", "layernorm", "random:0.001", "head")
_VARIANT_SEPARATOR = ", "
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """The cost of a cell's runs on one machine; resumed runs have no times.

    The times are the least of all runs: equal runs do equal work, and other load on a shared
    machine can only add to it.
    """

    machine: str  # the processor, and the threads if several; times compare only within one name
    seeds: int
    seconds: float | None
    cpu_seconds: float | None
    peak_bytes: float  # median of the runs


@dataclass(frozen=True)
class Cell:
    """Runs that differ only in their seed.

    `variant` are the options that set the cell apart from others of the same part, task, strategy,
    backbone and size ("epochs=5.0"); "" if there are none.
    """

    part: str
    task: str
    method: str  # strategy as served, with the delta that it started from, if any, and the variant
    backbone: str
    train_rows: int | None  # the train size that the study asked for; None for all rows
    rate: float  # the chosen learning rate
    tried: dict[float, float]  # mean metric on the selection rows of the deciding seeds, by rate
    outcomes: dict[int, RunOutcome]  # by seed, lowest seed first
    command: str  # repeats the first run
    variant: str

    @property
    def strategy(self) -> str:
        """The method without its variant."""
        return self.method.removesuffix(_VARIANT_SEPARATOR + self.variant)

    @property
    def first(self) -> RunOutcome:
        """Outcome of the lowest seed; represents facts that all seeds share."""
        return next(iter(self.outcomes.values()))

    @property
    def scores(self) -> dict[int, float]:
        """Primary metric on the dev set by seed."""
        return {seed: outcome.dev_score for seed, outcome in self.outcomes.items()}

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return fmean(self.scores.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation of the scores (n - 1 in the denominator); None for one seed."""
        return stdev(self.scores.values()) if len(self.scores) > 1 else None

    @cached_property
    def costs(self) -> list[Cost]:
        """Costs by machine, the fastest machine first."""
        machines: dict[str, list[RunOutcome]] = defaultdict(list)
        for outcome in self.outcomes.values():
            threads = outcome.machine.threads
            name = outcome.machine.cpu + (f", {threads} threads" if threads > 1 else "")
            machines[name].append(outcome)
        costs = [_cost(name, outcomes) for name, outcomes in machines.items()]
        return sorted(costs, key=lambda cost: (cost.seconds is None, cost.seconds or 0.0))

    @property
    def cost(self) -> Cost:
        """Cost on the fastest machine."""
        return self.costs[0]

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters, the head included in both."""
        return self.first.trained / self.first.total


def _cost(machine: str, outcomes: Sequence[RunOutcome]) -> Cost:
    whole = [outcome for outcome in outcomes if not outcome.resumed]
    cpu_seconds = [found.cpu_seconds for found in whole if found.cpu_seconds is not None]
    return Cost(
        machine=machine,
        seeds=len(outcomes),
        seconds=min((outcome.seconds for outcome in whole), default=None),
        cpu_seconds=min(cpu_seconds, default=None),
        peak_bytes=median(outcome.peak_bytes for outcome in outcomes),
    )


class _Setting(NamedTuple):
    """The common properties of runs that differ only in seed and learning rate."""

    part: str
    task: str
    method: str
    backbone: str
    train_rows: int | None
    options: tuple[tuple[str, str], ...]


def make_cells(runs: Iterable[Run]) -> list[Cell]:
    """Group finished runs into cells, by part and task in their order, then by method and size."""
    groups: dict[_Setting, dict[float, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        if run.outcome is not None:
            by_rate = groups[_setting(run, run.outcome)]
            by_rate[run.outcome.learning_rate][run.options["seed"]] = run
    variants = _variants(groups)
    cells = [_cell(setting, variants[setting], rates) for setting, rates in groups.items()]
    parts = list(dict.fromkeys(cell.part for cell in cells))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    return sorted(
        cells,
        key=lambda cell: (
            parts.index(cell.part),
            tasks.index(cell.task),
            method_order(cell.method),
            cell.train_rows or 0,
        ),
    )


def _cell(setting: _Setting, variant: str, by_rate: dict[float, dict[int, Run]]) -> Cell:
    common = sorted(set.intersection(*(set(seeds) for seeds in by_rate.values())))
    comparable = {rate: [seeds[seed] for seed in common] for rate, seeds in by_rate.items()}
    if not common:  # the rate was taken from elsewhere, or the sweep is not finished
        most = max(len(seeds) for seeds in by_rate.values())
        comparable = {
            rate: list(seeds.values()) for rate, seeds in by_rate.items() if len(seeds) == most
        }
    part, task, method, backbone, train_rows, _ = setting
    rate = choose_rate(comparable)
    runs = dict(sorted(by_rate[rate].items()))
    return Cell(
        part=part,
        task=task,
        method=f"{method}{_VARIANT_SEPARATOR}{variant}" if variant else method,
        backbone=backbone,
        train_rows=train_rows,
        rate=rate,
        tried={
            tried: fmean(run.outcome.selection_score[0] for run in runs if run.outcome)
            for tried, runs in sorted(comparable.items())
        },
        outcomes={seed: run.outcome for seed, run in runs.items() if run.outcome},
        command=next(iter(runs.values())).command,
        variant=variant,
    )


def _setting(run: Run, outcome: RunOutcome) -> _Setting:
    options = {name: value for name, value in run.options.items() if name not in ("seed", "lr")}
    start = PurePath(str(run.options.get("init_from", "")))
    return _Setting(
        run.part,
        outcome.task,
        outcome.strategy + (f" from {start.parent.name}/{start.stem}" if start.name else ""),
        outcome.backbone,
        run.options.get("train_rows"),
        tuple((name, str(value)) for name, value in sorted(options.items())),
    )


def _variants(settings: Iterable[_Setting]) -> dict[_Setting, str]:
    """Return for each setting the options that set it apart from others in its table cell."""
    alike: dict[tuple[object, ...], list[_Setting]] = defaultdict(list)
    for setting in settings:
        alike[setting[:-1]].append(setting)
    variants = {}
    for group in alike.values():
        common = set.intersection(*(set(setting.options) for setting in group))
        for setting in group:
            distinct = (option for option in setting.options if option not in common)
            variants[setting] = " ".join(f"{name}={value}" for name, value in distinct)
    return variants


def method_order(method: str) -> tuple[int, str]:
    """Return the sort key of a method in tables and figures."""
    strategy, _, variant = method.partition(_VARIANT_SEPARATOR)
    known = strategy in _ORDER
    return (_ORDER.index(strategy), variant) if known else (len(_ORDER), method)


def not_comparable(cells: Sequence[Cell]) -> list[str]:
    """Return a sentence for each mixture of runs on other rows, precisions or weights."""
    runs = [(cell, seed, outcome) for cell in cells for seed, outcome in cell.outcomes.items()]
    precisions = _conflicts(
        ((cell.part, cell.task, cell.method, cell.backbone, cell.train_rows), outcome.precision)
        for cell, _, outcome in runs
    )
    # A sample is drawn with the run's seed; otherwise all seeds have the same rows.
    rows = _conflicts(
        ((cell.task, cell.train_rows, cell.train_rows and seed), outcome.data_digest)
        for cell, seed, outcome in runs
    )
    weights = _conflicts((outcome.backbone, outcome.fingerprint) for _, _, outcome in runs)
    return [
        *(
            f"part `{part}`, {task}, `{method}`: seeds in the precisions {' and '.join(found)}"
            for (part, task, method, _, _), found in precisions.items()
        ),
        *(
            f"{task}{'' if size is None else f', {size:,} rows, seed {seed}'}: runs on "
            f"{len(found)} different sets of rows (data digests "
            f"{', '.join(digest[:8] for digest in found)})"
            for (task, size, seed), found in rows.items()
        ),
        *(
            f"{len(found)} different backbones are called {name} (by their fingerprints)"
            for name, found in weights.items()
        ),
    ]


def _conflicts(pairs: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    """Return the sorted values of each key that has several."""
    found: dict[Key, set[str]] = defaultdict(set)
    for key, value in pairs:
        found[key].add(value)
    return {key: sorted(values) for key, values in found.items() if len(values) > 1}
