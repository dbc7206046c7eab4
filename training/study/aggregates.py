"""The cells of a study's tables: the seeds of one strategy on one task at one size, summed up.

Runs of one cell differ in nothing but seed and learning rate. The rate is chosen as the sweep chose
it: by the selection rows of the seeds that every rate has. The other rates' runs are left out.

What in a study does not compare: runs on other rows, in another precision, of other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from statistics import fmean, median, stdev

from training.study.plan import choose_rate
from training.study.results import Machine, Run, RunOutcome

MAIN = "main"
ZOO = "zoo"  # one seed, on samples: what is served, beside the tasks that the study leaves out
# Shown first and in this order; others follow by name.
_ORDER = ("full", "bitfit", "layernorm", "random:0.001", "head")
_APART = ", "
# Part, task, method, backbone, train rows asked for, all options but seed and rate.
_Mark = tuple[str, str, str, str, int | None, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Cost:
    """What the runs of a cell took on one machine.

    Attributes:
        machine: as `machine_name` calls it.
        seeds: how many ran there.
        seconds: of the fastest run that was not stopped in between; None if all were. Equal runs do
            equal work: whatever else a shared machine does can only add to it.
        cpu_seconds: the same in seconds of a processor; None where no such run has it.
        peak_bytes: median of the runs' peak memory.
    """

    machine: str
    seeds: int
    seconds: float | None
    cpu_seconds: float | None
    peak_bytes: float


@dataclass(frozen=True)
class Cell:
    """The runs that differ in nothing but their seed.

    Attributes:
        part: of the study.
        task: GLUE's name.
        method: strategy as served, with the delta that it started from if it did; and with
            `variant`.
        train_rows: that the study asked for; None for all of the task's.
        variant: the options that set it apart from another cell of the same part, task, strategy,
            backbone and size ("epochs=5.0"); "" if there is none.
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
    variant: str = ""

    @property
    def strategy(self) -> str:
        """The method without its variant."""
        return self.method.removesuffix(f"{_APART}{self.variant}") if self.variant else self.method

    @cached_property
    def outcomes(self) -> dict[int, RunOutcome]:
        """What the runs gave, by seed."""
        return {seed: run.outcome for seed, run in self.runs.items() if run.outcome}

    @property
    def first(self) -> RunOutcome:
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

    @cached_property
    def costs(self) -> list[Cost]:
        """What the runs took, by machine; the fastest one first."""
        machines: dict[str, list[RunOutcome]] = {}
        for outcome in self.outcomes.values():
            machines.setdefault(machine_name(outcome.machine), []).append(outcome)
        costs = [_cost(name, outcomes) for name, outcomes in machines.items()]
        return sorted(costs, key=lambda cost: (cost.seconds is None, cost.seconds or 0.0))

    @property
    def cost(self) -> Cost:
        """On the fastest machine."""
        return self.costs[0]

    @property
    def trained_share(self) -> float:
        """Trained over all parameters, the head included in both."""
        return self.first.trained / self.first.total


def machine_name(machine: Machine) -> str:
    """What times are comparable on: the processor, with the threads of a run if several."""
    threads = f", {machine.threads} threads" if machine.threads > 1 else ""
    return f"{machine.cpu}{threads}"


def _cost(machine: str, outcomes: Sequence[RunOutcome]) -> Cost:
    whole = [outcome for outcome in outcomes if not outcome.resumed]
    in_cpu = [outcome.cpu_seconds for outcome in whole if outcome.cpu_seconds is not None]
    return Cost(
        machine=machine,
        seeds=len(outcomes),
        seconds=min((outcome.seconds for outcome in whole), default=None),
        cpu_seconds=min(in_cpu, default=None),
        peak_bytes=median(outcome.peak_bytes for outcome in outcomes),
    )


def make_cells(runs: Iterable[Run]) -> list[Cell]:
    """Group finished runs; failed ones are left out, and rates that lack a seed of the others too.

    Returns:
        Cells by part and task in the order of the runs, then by method and size.
    """
    groups: dict[_Mark, dict[float, dict[int, Run]]] = {}
    for run in runs:
        if run.outcome is not None:
            rates = groups.setdefault(_mark(run), {})
            rates.setdefault(run.outcome.learning_rate, {})[run.options["seed"]] = run
    variants = _variants(groups)
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
        variant = variants[mark]
        part, task, method, backbone, train_rows, _ = mark
        named = f"{method}{_APART}{variant}" if variant else method
        chosen = dict(sorted(by_rate[rate].items()))
        cells.append(Cell(part, task, named, backbone, train_rows, rate, tried, chosen, variant))
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


def _mark(run: Run) -> _Mark:
    """What a run has in common with those that differ in seed and learning rate only."""
    assert run.outcome is not None
    options = {name: value for name, value in run.options.items() if name not in ("seed", "lr")}
    return (
        run.part,
        run.outcome.task,
        _method(run),
        run.outcome.backbone,
        run.options.get("train_rows"),
        tuple((name, str(value)) for name, value in sorted(options.items())),
    )


def _variants(marks: Iterable[_Mark]) -> dict[_Mark, str]:
    """For each mark the options in which it differs from others with the same place in tables."""
    alike: dict[tuple[object, ...], list[_Mark]] = {}
    for mark in marks:
        alike.setdefault(mark[:-1], []).append(mark)
    found = {}
    for group in alike.values():
        common = set.intersection(*(set(mark[-1]) for mark in group))
        for mark in group:
            own = (f"{name}={value}" for name, value in mark[-1] if (name, value) not in common)
            found[mark] = " ".join(own)
    return found


def _selection_mean(runs: Iterable[Run]) -> float:
    return fmean(run.outcome.selection_score[0] for run in runs if run.outcome)


def method_order(method: str) -> tuple[int, str]:
    """Where a method stands in tables and figures."""
    strategy, _, variant = method.partition(_APART)
    known = strategy in _ORDER
    return (_ORDER.index(strategy), variant) if known else (len(_ORDER), method)


def _method(run: Run) -> str:
    assert run.outcome is not None
    start = PurePath(str(run.options.get("init_from", "")))
    return run.outcome.strategy + (f" from {start.parent.name}/{start.stem}" if start.name else "")


def not_comparable(cells: Sequence[Cell]) -> list[str]:
    """A sentence for each mixture, none for a study of one piece."""
    return [*_mixed_cells(cells), *_mixed_rows(cells), *_mixed_weights(cells)]


def _mixed_cells(cells: Iterable[Cell]) -> list[str]:
    found = []
    for cell in cells:
        precisions = sorted({outcome.precision for outcome in cell.outcomes.values()})
        if len(precisions) > 1:
            found.append(
                f"part `{cell.part}`, {cell.task}, `{cell.method}`: seeds in the precisions "
                f"{' and '.join(precisions)}"
            )
    return found


def _mixed_rows(cells: Iterable[Cell]) -> list[str]:
    """Rows that are drawn are those of the seed; all others are the same for each seed."""
    digests: dict[tuple[str, int | None, int | None], set[str]] = {}
    for cell in cells:
        for seed, outcome in cell.outcomes.items():
            drawn = None if cell.train_rows is None else seed
            digests.setdefault((cell.task, cell.train_rows, drawn), set()).add(outcome.data_digest)
    return [
        f"{task}{_which(size, seed)}: runs on {len(found)} different sets of rows (data digests "
        f"{', '.join(sorted(digest[:8] for digest in found))})"
        for (task, size, seed), found in digests.items()
        if len(found) > 1
    ]


def _which(size: int | None, seed: int | None) -> str:
    return "" if size is None else f", {size:,} rows, seed {seed}"


def _mixed_weights(cells: Iterable[Cell]) -> list[str]:
    prints: dict[str, set[str]] = {}
    for outcome in _outcomes(cells):
        prints.setdefault(outcome.backbone, set()).add(outcome.fingerprint)
    return [
        f"{len(found)} different backbones are called {name} (by their fingerprints)"
        for name, found in prints.items()
        if len(found) > 1
    ]


def _outcomes(cells: Iterable[Cell]) -> Iterable[RunOutcome]:
    return (outcome for cell in cells for outcome in cell.outcomes.values())
