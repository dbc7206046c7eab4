"""Compares methods on the same rows, and decides which goals of answer quality are met.

A point is a hundredth of a set's primary metric. Two methods are compared run by run: a run and its
counterpart have seen the same rows (equal digests), and have equal seeds if both draw at random.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.bench.quality.results import DETERMINISTIC, QualityRun, is_stock

BEST_SKLEARN = "best sklearn"  # for pairs the better of both ways to read them, by dev score
BEST_STOCK = "stock"  # the rate with the best score on the selection rows
_EPSILON = 1e-9  # equal scores are equal in spite of rounding
_CALIBRATED_ROWS = 1000
_ECE_LIMIT = 0.03


@dataclass(frozen=True)
class Difference:
    """The difference of two methods on a set: the mean over seeds, and its deviation."""

    set: str
    value: float  # in points, or a ratio
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Goal:
    """A goal with its measurement; `state` is met, not met, or open while sets are missing."""

    text: str
    target: str
    measured: str
    state: str


def with_best(runs: Iterable[QualityRun]) -> list[QualityRun]:
    """Return the runs, and again those that stand for scikit-learn and for stock transformers."""
    found = list(runs)
    by_set: dict[str, list[QualityRun]] = defaultdict(list)
    for run in found:
        by_set[run.set].append(run)
    for of_set in by_set.values():
        readings = [pick(of_set, name) for name in ("sklearn", "sklearn:apart")]
        best = max(filter(None, readings), key=mean_score, default=[])
        found += [run.model_copy(update={"method": BEST_SKLEARN}) for run in best]
        of_seed: dict[int, list[QualityRun]] = defaultdict(list)
        for run in of_set:
            if is_stock(run.method):
                of_seed[run.seed].append(run)
        for rates in of_seed.values():
            chosen = max(rates, key=lambda run: run.scores["selection"][run.metric])
            found.append(chosen.model_copy(update={"method": BEST_STOCK}))
    return found


def pick(runs: Iterable[QualityRun], method: str) -> list[QualityRun]:
    """Return the runs of a method."""
    return [run for run in runs if run.method == method]


def mean_score(runs: Iterable[QualityRun]) -> float:
    """Return the mean primary metric on the dev split."""
    return statistics.fmean(run.score for run in runs)


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation, or None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def compare(
    runs: Sequence[QualityRun],
    method: str,
    other: str,
    compute: Callable[[QualityRun, QualityRun], float] | None = None,
) -> dict[str, Difference]:
    """Return by how many points a method is better than another, for each set that has both."""
    compute = compute or (lambda mine, theirs: 100 * (mine.score - theirs.score))
    is_fixed = other in (*DETERMINISTIC, BEST_SKLEARN)
    counterparts = {_rows_seen(run, is_fixed): run for run in pick(runs, other)}
    values: dict[str, list[float]] = defaultdict(list)
    for run in pick(runs, method):
        found = counterparts.get(_rows_seen(run, is_fixed))
        if found is not None:
            values[run.set].append(compute(run, found))
    return {
        name: Difference(name, statistics.fmean(each), spread(each), len(each))
        for name, each in values.items()
    }


def _rows_seen(run: QualityRun, is_fixed: bool) -> tuple[str, str, int]:
    return run.set, run.digest, 0 if is_fixed else run.seed


def cpu_ratio(mine: QualityRun, theirs: QualityRun) -> float:
    """Return the ratio of the CPU time of two runs."""
    return mine.cpu_s / theirs.cpu_s


def judge_each(
    text: str, target: str, found: dict[str, Difference], wanted: Iterable[str], limit: float
) -> Goal:
    """Decide a goal that must hold on every set: no difference is below the limit."""
    missing = [name for name in wanted if name not in found]
    missed = sorted(
        (each for each in found.values() if each.value < limit - _EPSILON),
        key=lambda each: each.value,
    )
    measured = "nothing measured"
    if found:
        worst = min(found.values(), key=lambda each: each.value)
        holds = len(found) - len(missed)
        measured = f"{holds} of {len(found)} sets; least: {worst.set} {worst.value:+.2f}"
    if len(missed) > 1:
        below = ", ".join(f"{each.set} {each.value:+.2f}" for each in missed)
        measured += f"; missed by {below}"
    return Goal(text, target, measured, _state(bool(missed), missing, is_measured=bool(found)))


def judge_mean(
    text: str, target: str, found: dict[str, Difference], wanted: Iterable[str], limit: float
) -> Goal:
    """Decide a goal for the mean over sets: the mean is not below the limit."""
    missing = [name for name in wanted if name not in found]
    if not found:
        return Goal(text, target, "nothing measured", _state(False, missing, is_measured=False))
    mean = statistics.fmean(each.value for each in found.values())
    measured = f"{mean:+.2f} over {len(found)} sets"
    return Goal(text, target, measured, _state(mean < limit - _EPSILON, missing))


def _state(is_missed: bool, missing: Sequence[str], *, is_measured: bool = True) -> str:
    if is_missed:
        return "not met"
    if not is_measured:
        return "open: no runs"
    return f"open: no runs on {', '.join(missing)}" if missing else "met"


def judge_time(found: dict[str, Difference], wanted: Iterable[str]) -> Goal:
    """Decide whether our head takes at most the time of scikit-learn on every set."""
    missing = [name for name in wanted if name not in found]
    missed = [each for each in found.values() if each.value > 1]
    measured = "nothing measured"
    if found:
        slowest = max(found.values(), key=lambda each: each.value)
        holds = len(found) - len(missed)
        measured = f"{holds} of {len(found)} sets; most: {slowest.set} {slowest.value:.2f} times"
    text = "`head` against scikit-learn: CPU time of the whole process"
    state = _state(bool(missed), missing, is_measured=bool(found))
    return Goal(text, "at most 1 times on every set", measured, state)


def judge_calibration(runs: Sequence[QualityRun], method: str) -> Goal | None:
    """Decide whether probabilities are calibrated on the sets that are large enough to tell."""
    values: dict[str, list[float]] = defaultdict(list)
    for run in pick(runs, method):
        error = run.scores[run.dev_split].get("ece")
        if error is not None and run.rows[run.dev_split] >= _CALIBRATED_ROWS:
            values[run.set].append(error)
    if not values:
        return None
    means = {name: statistics.fmean(each) for name, each in values.items()}
    above = {name: value for name, value in means.items() if value > _ECE_LIMIT}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in (above or means).items())
    return Goal(
        f"`{method}`: expected calibration error on sets with 1,000 or more dev rows",
        f"at most {_ECE_LIMIT}",
        f"{len(means) - len(above)} of {len(means)} sets; {shown}",
        "not met" if above else "met",
    )


def judge_goals(runs: Sequence[QualityRun]) -> list[Goal]:
    """Decide all goals; a set counts if any method has run on it."""
    runs = with_best(runs)
    sets = list(dict.fromkeys(run.set for run in runs))
    cosine_sets = [name for name in sets if pick((r for r in runs if r.set == name), "cosine")]
    every, mean = "on every set", "mean of all sets"
    goals = [
        judge_each(
            "`bitfit` against scikit-learn on frozen embeddings, points",
            f"above 0 {every}",
            compare(runs, "bitfit", BEST_SKLEARN),
            sets,
            2 * _EPSILON,  # better, not equal
        )
    ]
    for other, name in (("full", "our"), (BEST_STOCK, "stock transformers'")):
        found = compare(runs, "bitfit", other)
        text = f"`bitfit` against {name} full fine-tuning, points"
        goals.append(judge_mean(text, f"at least -0.5, {mean}", found, sets, -0.5))
        goals.append(judge_each(text, f"at least -2 {every}", found, sets, -2.0))
    head = "`head` against scikit-learn, points"
    goals += [
        judge_each(head, f"at least 0 {every}", compare(runs, "head", BEST_SKLEARN), sets, 0.0),
        judge_time(compare(runs, "head", BEST_SKLEARN, cpu_ratio), sets),
        judge_each(
            "`bitfit` against the cosine of the frozen embeddings, points",
            "above 0 on every set of pairs",
            compare(runs, "bitfit", "cosine"),
            cosine_sets,
            2 * _EPSILON,
        ),
        judge_each(
            "`random:0.001` against `bitfit`, points",
            f"at least -1.5 {every}",
            compare(runs, "random:0.001", "bitfit"),
            sets,
            -1.5,
        ),
        judge_mean(
            "our `full` against stock transformers, equal steps, points",
            f"at least 0, {mean}",
            compare(runs, "full", BEST_STOCK),
            sets,
            0.0,
        ),
    ]
    calibration = judge_calibration(runs, "bitfit")
    return [*goals, calibration] if calibration else goals
