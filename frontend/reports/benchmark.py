"""Arranges the benchmark: points of every source with their costs, fronts, curves, comparisons.

A point always knows its source: the file or the delta that its number was read from, and the
command that makes it again. Tested by tests/unit/frontend/reports/test_benchmark.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from urllib.parse import urlencode

from frontend.models import Benchmark

SERVED, STUDY, QUALITY = "served deltas", "study", "quality benchmark"
STUDY_FILE = "docs/results/results.csv"
_MAIN_PARTS = ("main", "zoo", "recipe")
_LOW_DATA = "low-data"
BASELINES = {
    "majority": "larger class",
    "sklearn": "scikit-learn",
    "sklearn:apart": "scikit-learn, texts apart",
    "cosine": "cosine of the two texts",
}
FULL = "full"
# The columns that a point's costs can be shown by: name of the field, and its words.
COSTS = {
    "share": "Trained share",
    "size_bytes": "Size of the delta",
    "seconds": "Training time",
}
MAX_TASKS = 12  # panels at a time


@dataclass(frozen=True)
class Point:
    """One method on one task: its mean score, its costs, and where the number comes from."""

    source: str
    part: str  # of the study, or of the source; people filter by it
    task: str
    method: str
    metric: str
    value: float
    spread: float | None  # standard deviation over the seeds; None for one seed
    seeds: int
    rows: int  # of the dev split
    train_rows: int
    share: float | None  # of all parameters, trained
    size_bytes: int | None
    seconds: float | None
    machine: str
    origin: str  # the file, or the delta's version
    command: str
    version: str | None = None  # of a served delta

    @property
    def is_baseline(self) -> bool:
        """True for methods without a delta: the larger class, scikit-learn and the cosine."""
        return self.method in BASELINES

    @property
    def link(self) -> str:
        """The address of its delta on the page: of its version, or of the one that answers."""
        query = {"task": self.task, "strategy": self.method}
        return f"deltas?{urlencode(query | ({'version': self.version} if self.version else {}))}"

    def cost(self, name: str) -> float | None:
        """Return one of `COSTS`; None if it is unknown, or 0 and has no place on a log axis."""
        value = {"share": self.share, "size_bytes": self.size_bytes, "seconds": self.seconds}[name]
        return float(value) if value else None


def all_points(benchmark: Benchmark) -> list[Point]:
    """Return every point: served deltas, then the study, then the quality benchmark."""
    total = max(1, benchmark.backbone.parameters)
    measured = benchmark.measured
    points = [
        Point(
            SERVED, SERVED, row.task, row.strategy, row.metric, row.value, None, 1, row.split_rows,
            row.train_rows, row.trained_share, row.size_bytes, None, "", f"version {row.version}",
            "", row.version,
        )
        for row in benchmark.rows
    ]  # fmt: skip
    points += [
        Point(
            STUDY, row.part, row.task, row.strategy, row.metric, row.mean, row.spread, row.seeds,
            row.split_rows, row.train_rows, row.trained_share, row.size_bytes, row.seconds,
            row.machine, STUDY_FILE, row.command,
        )
        for row in benchmark.study
        if row.metric
    ]  # fmt: skip
    points += [
        Point(
            QUALITY, QUALITY, row.task, row.method, row.metric, row.mean, row.spread, row.seeds,
            row.split_rows, row.train_rows,
            None if row.trainable_parameters is None else row.trainable_parameters / total,
            row.size_bytes, row.seconds, row.machine, measured.quality_source, row.command,
        )
        for row in measured.quality
    ]  # fmt: skip
    return points


def main_points(points: Iterable[Point], sources: Sequence[str]) -> list[Point]:
    """Return the points of some sources that compare methods on all train rows."""
    return [
        point
        for point in points
        if point.source in sources and (point.source != STUDY or point.part in _MAIN_PARTS)
    ]


def usual_sources(points: Iterable[Point], sources: Sequence[str], task: str) -> list[str]:
    """Return the sources to show at first: the first with points, and one that has the task."""
    tasks: dict[str, set[str]] = {}
    for point in points:
        tasks.setdefault(point.source, set()).add(point.task)
    present = [name for name in sources if name in tasks]
    having = [name for name in present if task in tasks[name]]
    return list(dict.fromkeys(present[:1] + having[:1]))


def tasks_of(points: Iterable[Point], query: str = "") -> list[str]:
    """Return the tasks whose name has a text, those with most points first."""
    counts: dict[str, int] = {}
    for point in points:
        if query.casefold() in point.task.casefold():
            counts[point.task] = counts.get(point.task, 0) + 1
    return sorted(counts, key=lambda task: (-counts[task], task))


def front(points: Sequence[Point], cost: str) -> list[Point]:
    """Return the Pareto front: no other point is as cheap and better; cheapest first."""
    best: list[Point] = []
    priced = [point for point in points if point.cost(cost) is not None]
    for point in sorted(priced, key=lambda each: (each.cost(cost), -each.value)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


@dataclass(frozen=True)
class Reference:
    """The scores that a task's deltas are compared with; None where nothing was measured."""

    full: float | None
    baseline: float | None  # the better one of scikit-learn's
    majority: float | None


def reference(points: Iterable[Point], task: str, metric: str) -> Reference:
    """Return the references of a task: the mean of each method over its sources."""
    scores: dict[str, list[float]] = {}
    for point in points:
        if point.task == task and point.metric == metric:
            scores.setdefault(point.method, []).append(point.value)
    means = {method: fmean(values) for method, values in scores.items()}
    learnt = [means[name] for name in ("sklearn", "sklearn:apart") if name in means]
    return Reference(means.get(FULL), max(learnt, default=None), means.get("majority"))


def low_data(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Return the study's points with few train rows by task, each task's in order of rows."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.source == STUDY and point.part == _LOW_DATA:
            found.setdefault(point.task, []).append(point)
    return {
        task: sorted(of_task, key=lambda point: (point.method, point.train_rows))
        for task, of_task in found.items()
    }


@dataclass(frozen=True)
class Comparison:
    """A number of the earlier study beside ours; None if ours has no such run."""

    task: str
    strategy: str
    train_rows: int | None
    earlier: float
    earlier_spread: float
    earlier_rate: float
    ours: float | None
    ours_spread: float | None


def beside_earlier(benchmark: Benchmark, points: Iterable[Point]) -> list[Comparison]:
    """Return the earlier study's numbers at its best learning rates, with ours of the study."""
    ours: Mapping[tuple[str, str], Point] = {
        (point.task, point.method): point
        for point in points
        if point.source == STUDY and point.part == "main"
    }
    best: dict[tuple[str, str], Comparison] = {}
    for row in sorted(benchmark.measured.earlier, key=lambda each: -each.mean):
        key = row.task, row.strategy
        if row.train_rows is not None or key in best:
            continue
        mine = ours.get(key)
        best[key] = Comparison(
            row.task,
            row.strategy,
            row.train_rows,
            row.mean,
            row.spread,
            row.learning_rate,
            mine.value if mine else None,
            mine.spread if mine else None,
        )
    return sorted(best.values(), key=lambda each: (each.task, each.strategy))
