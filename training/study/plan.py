"""A study: which runs to make, declared in a TOML file or on the command line of `training.sweep`.

Each part of a study crosses tasks, strategies, re-initialisations, train sizes and seeds. Where a
strategy has several learning rates, the first `rate_seeds` seeds run with each of them, the one
with the best mean score on the *selection* rows is chosen, and the other seeds run with it alone.
The dev sets play no part in the choice.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.data.tasks import find_task
from training.errors import ConfigError, listing
from training.options import FitConfig
from training.strategies.grammar import canonical, default_learning_rate
from training.study.results import Run, run_key

Options = dict[str, Any]
Rates = tuple[float, ...]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Part(_Declared):
    """One block of runs: the cross product of its lists."""

    name: Annotated[str, Field(min_length=1, description="what the report calls it")]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    freeze: Annotated[tuple[str, ...], Field(min_length=1, description="strategies")]
    reinit: tuple[str, ...] = ("none",)
    init_from: Annotated[
        tuple[str, ...], Field(description="deltas to start from; '' is the backbone itself")
    ] = ("",)
    backbone: Annotated[tuple[str, ...], Field(description="'' is the default one")] = ("",)
    train_rows: Annotated[
        tuple[int, ...], Field(description="0 is the task's own option, or all rows")
    ] = (0,)
    seeds: Annotated[int, Field(ge=1, description="how many, from 0")] = 1
    rate_seeds: Annotated[
        int, Field(ge=1, description="seeds that run with every rate, to choose one")
    ] = 1
    rates: Annotated[
        Rates | dict[str, Rates], Field(description="for all strategies, or by strategy")
    ] = ()
    rates_from: Annotated[
        str, Field(description="a part before this one whose choice of rates holds here too")
    ] = ""
    rates_of: Annotated[
        str, Field(description="take the rate chosen for this strategy (default: the same one)")
    ] = ""
    options: Annotated[Options, Field(description="more options of training.fit")] = {}
    tasks_options: Annotated[dict[str, Options], Field(description="the same, by task")] = {}

    @model_validator(mode="after")
    def _one_origin_of_rates(self) -> Part:
        if self.rates and self.rates_from:
            raise ValueError("give either rates or rates_from")
        if self.rates_of and not self.rates_from:
            raise ValueError("rates_of goes with rates_from")
        if self.rate_seeds > self.seeds:
            raise ValueError("rate_seeds is more than seeds")
        return self


class Study(_Declared):
    """A whole study, as its file declares it; what a part says goes before what the study says."""

    options: Annotated[Options, Field(description="of every run")] = {}
    tasks: Annotated[dict[str, Options], Field(description="options by task")] = {}
    strategies: Annotated[dict[str, Options], Field(description="options by strategy")] = {}
    rates: Annotated[dict[str, Rates], Field(description="learning rates by strategy")] = {}
    part: Annotated[tuple[Part, ...], Field(min_length=1)]


@dataclass(frozen=True)
class RateChoice:
    """Which rate to take: the keys of the runs that decide, by rate."""

    candidates: tuple[tuple[float, tuple[str, ...]], ...]

    def resolve(self, finished: Mapping[str, Run]) -> float | None:
        """The rate with the best selection scores; None while a run is missing.

        A rate with a run that diverged is out. One that failed otherwise is missing: that the
        system killed it says nothing about its rate.

        Raises:
            ConfigError: every rate has one that diverged.
        """
        if len(self.candidates) == 1:
            return self.candidates[0][0]
        runs = [finished.get(key) for _, keys in self.candidates for key in keys]
        if any(run is None or (run.error and not run.diverged) for run in runs):
            return None
        whole = {
            rate: [finished[key] for key in keys]
            for rate, keys in self.candidates
            if all(finished[key].outcome for key in keys)
        }
        if not whole:
            raise ConfigError("every learning rate diverged")
        return choose_rate(whole)


@dataclass(frozen=True)
class PlannedRun:
    """A run of the plan; its learning rate may still depend on others.

    Attributes:
        part: name of the part it belongs to.
        options: of `training.fit`, without the rate.
        rate: what gives the rate.
    """

    part: str
    options: Options
    rate: RateChoice

    def with_rate(self, rate: float) -> Options:
        """All options of the run."""
        return self.options | {"lr": rate}

    def find(self, finished: Mapping[str, Run]) -> Run | None:
        """The run, if it was made."""
        rate = self.chosen(finished)
        return None if rate is None else finished.get(run_key(self.with_rate(rate)))

    def chosen(self, finished: Mapping[str, Run]) -> float | None:
        """Its rate, if it is known already; None, too, if every rate that it might have failed."""
        try:
            return self.rate.resolve(finished)
        except ConfigError:
            return None


def choose_rate(runs: Mapping[float, Sequence[Run]]) -> float:
    """The rate whose runs are best on their selection rows, on average; the lowest where equal.

    Args:
        runs: finished runs with an outcome, by rate; the same seeds for each.
    """

    def mean_score(rate: float) -> tuple[float, float]:
        scores = [run.outcome.selection_score for run in runs[rate] if run.outcome]
        metrics, losses = zip(*scores, strict=True)
        return sum(metrics) / len(scores), sum(losses) / len(scores)

    return max(sorted(runs), key=mean_score)


def read_study(path: Path) -> Study:
    """Read and check a study's file.

    Raises:
        ConfigError: not there, not TOML, or not a study; names every wrong field.
    """
    try:
        return make_study(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a study ({error})") from error


def make_study(declared: Mapping[str, Any], origin: str) -> Study:
    """Check a study that was declared in `origin`; see `read_study`."""
    try:
        return Study.model_validate(declared)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise ConfigError(f"{origin}: {'; '.join(problems)}") from error


def plan(study: Study, only: Iterable[str] = ()) -> list[PlannedRun]:
    """Every run of a study, in the order in which to make them; each run once.

    Args:
        study: the declaration.
        only: names of parts; the other parts are left out (but can still lend their rates).

    Raises:
        ConfigError, TaskError: an option, a strategy, a task or a part that doesn't exist.
    """
    names = [part.name for part in study.part]
    wanted = set(only)
    if unknown := sorted(wanted - set(names)):
        raise ConfigError(f"no part is called {unknown[0]!r}; there are: {listing(names)}")
    planned: list[PlannedRun] = []
    seen: set[str] = set()
    choices: dict[tuple[str, ...], RateChoice] = {}
    lenders = {part.rates_from for part in study.part if part.name in wanted}
    for part in study.part:
        if wanted and part.name not in wanted | lenders:
            continue
        for run in _plan_part(study, part, choices):
            mark = run_key(run.options | {"rate": run.rate})
            if mark not in seen and (not wanted or part.name in wanted):
                seen.add(mark)
                planned.append(run)
    return planned


def num_missing(planned: Iterable[PlannedRun], finished: Mapping[str, Run]) -> int:
    """How many planned runs were not made; those whose rates all failed can't be, and count too."""
    return sum(run.find(finished) is None for run in planned)


def _plan_part(
    study: Study, part: Part, choices: dict[tuple[str, ...], RateChoice]
) -> Iterator[PlannedRun]:
    """The runs of a part, task by task: first those that choose rates, then seed by seed."""
    for task in part.tasks:
        cells = [_cell(study, part, task, variant) for variant in _variants(part)]
        seeds: list[PlannedRun] = []
        for options in cells:
            choice = _choice(study, part, options, choices)
            if len(choice.candidates) > 1 and not part.rates_from:
                for seed in range(part.rate_seeds):
                    yield from (
                        PlannedRun(part.name, options | {"seed": seed}, RateChoice(((rate, ()),)))
                        for rate, _ in choice.candidates
                    )
                rest = range(part.rate_seeds, part.seeds)
            else:
                rest = range(part.seeds)
            seeds += [PlannedRun(part.name, options | {"seed": seed}, choice) for seed in rest]
        yield from sorted(seeds, key=lambda run: int(run.options["seed"]))


def _variants(part: Part) -> list[Options]:
    return [
        {
            "freeze": canonical(freeze),
            **({"train_rows": rows} if rows else {}),
            **({"reinit": reinit} if reinit != "none" else {}),
            **({"init_from": start} if start else {}),
            **({"backbone": backbone} if backbone else {}),
        }
        for backbone in part.backbone
        for rows in part.train_rows
        for start in part.init_from
        for reinit in part.reinit
        for freeze in part.freeze
    ]


def _cell(study: Study, part: Part, task: str, variant: Options) -> Options:
    """Options of the runs that differ in rate and seed only, checked by `FitConfig`."""
    find_task(task)
    options: Options = {"task": task, **study.options, **study.tasks.get(task, {})}
    options |= study.strategies.get(variant["freeze"], {})
    options |= part.options | part.tasks_options.get(task, {}) | variant
    try:
        stated = FitConfig.model_validate(options).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"part {part.name!r}, {task}: {where}: {first['msg']}") from error
    return dict(sorted(stated.items()))


def _choice(
    study: Study, part: Part, options: Options, choices: dict[tuple[str, ...], RateChoice]
) -> RateChoice:
    """What gives the rate of a cell; remembered for parts that take their rates from this one."""
    task, freeze = str(options["task"]), str(options["freeze"])
    if part.rates_from:
        lender = (part.rates_from, task, canonical(part.rates_of or freeze))
        if lender not in choices:
            raise ConfigError(
                f"part {part.name!r}: rates_from: no part {part.rates_from!r} before it has "
                f"{lender[2]} on {task}"
            )
        return choices[lender]
    declared = part.rates if isinstance(part.rates, tuple) else part.rates.get(freeze, ())
    rates = declared or study.rates.get(freeze, ()) or (default_learning_rate(freeze),)
    candidates = tuple(
        (
            rate,
            tuple(run_key(options | {"seed": seed, "lr": rate}) for seed in range(part.rate_seeds)),
        )
        for rate in dict.fromkeys(rates)
    )
    choice = RateChoice(candidates)
    return choices.setdefault((part.name, task, freeze), choice) if _is_plain(options) else choice


def _is_plain(options: Options) -> bool:
    """Whether a cell's rates may be lent: nothing but task and strategy sets it apart."""
    return not {"reinit", "init_from", "backbone"} & set(options)
