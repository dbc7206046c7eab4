"""Plans a study: the runs that a TOML file or the command line of `training.sweep` declares.

Each part of a study is the cross product of tasks, strategies, re-initialisations, train sizes and
seeds. If a strategy has several learning rates, the first `rate_seeds` seeds run with each of them.
The rate with the best mean score on the *selection* rows is chosen, and the other seeds run with it
alone. The dev sets play no part in the choice. The runs are made by `training.study.run_pool`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltas.errors import did_you_mean, shortened
from training.data.tasks import TASKS, find_task
from training.errors import ConfigError, listing
from training.options import FitConfig
from training.strategies.grammar import canonical, default_learning_rate
from training.study.results import Run, run_key

Options = dict[str, Any]
Rates = tuple[Annotated[float, Field(gt=0)], ...]
Candidates = dict[float, tuple[str, ...]]
_MAX_PROBLEMS = 2000  # characters
_MAX_SEEDS = 10_000
# Options of `training.fit` that a study states elsewhere, where a value of them would be ignored.
_STATED_ELSEWHERE = {
    "task": "name it in the part's tasks",
    "freeze": "name it in the part's freeze",
    "lr": "give rates",
    "seed": "give the number of seeds",
    "data": "give --data to training.sweep",
    "out": "give --work and --keep-deltas to training.sweep",
    **dict.fromkeys(("resume", "overwrite", "dry_run", "json", "json_"), "leave it out"),
}
# Options of which a part has a list, with the value that leaves each of them to other declarations.
_UNSET = {"backbone": "", "train_rows": 0, "init_from": "", "reinit": "none"}


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Part(_Declared):
    """One block of runs: the cross product of its lists."""

    name: str = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    freeze: tuple[str, ...] = Field(min_length=1)
    reinit: tuple[str, ...] = ("none",)
    init_from: tuple[str, ...] = ("",)  # deltas to start from; "" is the backbone itself
    backbone: tuple[str, ...] = ("",)  # "" is the default backbone
    train_rows: tuple[int, ...] = (0,)  # 0 is the task's own option, or all rows
    seeds: int = Field(1, ge=1, le=_MAX_SEEDS)  # number of seeds, from 0
    rate_seeds: int = Field(1, ge=1)  # number of seeds that run with every rate, to choose one
    rates: Rates | dict[str, Rates] = ()  # for all strategies, or by strategy
    rates_from: str = ""  # earlier part whose choice of rates is used here, too
    rates_of: str = ""  # use the rate chosen for this strategy; "" is the same strategy
    options: Options = {}  # more options of `training.fit`
    tasks_options: dict[str, Options] = {}  # more options, by task

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
    """A whole study as its file declares it; options of a part override those of the study."""

    options: Options = {}  # options of every run
    tasks: dict[str, Options] = {}  # options by task
    strategies: dict[str, Options] = {}  # options by strategy
    rates: dict[str, Rates] = {}  # learning rates by strategy
    part: tuple[Part, ...] = Field(min_length=1)
    out: Path | None = None  # file of the results
    # By task: seconds that a forward pass of one row is assumed to take, until runs are measured.
    seconds_a_pass: dict[str, Annotated[float, Field(gt=0)]] = {}


@dataclass(frozen=True)
class PlannedRun:
    """A run of the plan: its options without the rate, which may still depend on other runs.

    `rates` are the learning rates to choose from, each with the keys of the runs that decide.
    """

    part: str
    options: Options
    rates: Candidates

    def with_rate(self, rate: float) -> Options:
        """Return all options of the run."""
        return self.options | {"lr": rate}

    def find(self, finished: Mapping[str, Run]) -> Run | None:
        """Return the finished run, if it was made."""
        rate = self.chosen(finished)
        return None if rate is None else finished.get(run_key(self.with_rate(rate)))

    def chosen(self, finished: Mapping[str, Run]) -> float | None:
        """Return the run's rate, or None if it is not known yet or every rate diverged."""
        try:
            return self.resolve_rate(finished)
        except ConfigError:
            return None

    def resolve_rate(self, finished: Mapping[str, Run]) -> float | None:
        """Return the rate with the best selection scores, or None while a run is missing.

        A rate with a diverged run is out. A run that failed otherwise counts as missing: a process
        that the system killed says nothing about its rate.

        Raises:
            ConfigError: every rate has a diverged run.
        """
        if len(self.rates) == 1:
            return next(iter(self.rates))
        runs = [finished.get(key) for keys in self.rates.values() for key in keys]
        if any(run is None or (run.error and not run.diverged) for run in runs):
            return None
        whole = {
            rate: [finished[key] for key in keys]
            for rate, keys in self.rates.items()
            if all(finished[key].outcome for key in keys)
        }
        if not whole:
            raise ConfigError("every learning rate diverged")
        return choose_rate(whole)


def choose_rate(runs: Mapping[float, Sequence[Run]]) -> float:
    """Return the rate with the best mean score on the selection rows; the lowest of equal ones.

    The runs, by rate, have finished with an outcome, and each rate has the same seeds.
    """

    def mean_score(rate: float) -> tuple[float, float]:
        scores = [run.outcome.selection_score for run in runs[rate] if run.outcome]
        metrics, losses = zip(*scores, strict=True)
        return sum(metrics) / len(scores), sum(losses) / len(scores)

    return max(sorted(runs), key=mean_score)


def read_study(path: Path) -> Study:
    """Read and check a study's file.

    Raises:
        ConfigError: the file is missing, not TOML, or not a study; names every wrong field.
    """
    try:
        return make_study(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as a study ({error})") from error


def make_study(declared: Mapping[str, Any], origin: str) -> Study:
    """Check the declaration of a study; `origin` names its source in messages.

    Raises:
        ConfigError: not a study; names every wrong field.
    """
    try:
        return Study.model_validate(declared)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
        ]
        raise ConfigError(f"{origin}: {shortened('; '.join(problems), _MAX_PROBLEMS)}") from error


def narrow(
    study: Study,
    tasks: Iterable[str] = (),
    seeds: int | None = None,
    options: Options | None = None,
) -> Study:
    """Return a study of fewer tasks and seeds, with these options in place of the declared ones.

    Raises:
        ConfigError: the study has none of the tasks, or an option has a wrong value.
    """
    wanted, declared = list(tasks), {task: None for part in study.part for task in part.tasks}
    if unknown := [task for task in wanted if task not in declared]:
        raise ConfigError(f"the study has no task {unknown[0]!r}; it has: {listing(declared)}")
    lists = {name: (value,) for name, value in (options or {}).items() if name in _UNSET}
    others = {name: value for name, value in (options or {}).items() if name not in _UNSET}
    parts = []
    for part in study.part:
        kept = [task for task in part.tasks if not wanted or task in wanted]
        changes: Options = {"tasks": kept, "options": part.options | others} | lists
        changes["seeds"] = min(part.seeds, seeds or part.seeds)
        changes["rate_seeds"] = min(part.rate_seeds, changes["seeds"])
        changes["tasks_options"] = {
            task: found | others for task, found in part.tasks_options.items()
        }
        parts += [part.model_dump() | changes] if kept else []
    return make_study(study.model_dump() | {"part": parts}, "the narrowed study")


def plan(study: Study, only: Iterable[str] = ()) -> list[PlannedRun]:
    """Return every run of a study once, in the order in which to make them.

    `only` names parts; other parts are left out (but can still lend their rates).

    Raises:
        ConfigError, TaskError: an unknown option, strategy, task or part.
    """
    _check_tables(study)
    names = [part.name for part in study.part]
    wanted = set(only)
    if unknown := sorted(wanted - set(names)):
        raise ConfigError(f"no part is called {unknown[0]!r}; there are: {listing(names)}")
    planned: dict[str, PlannedRun] = {}
    choices: dict[tuple[str, ...], Candidates] = {}
    lenders = {part.rates_from for part in study.part if part.name in wanted}
    for part in study.part:
        if wanted and part.name not in wanted | lenders:
            continue
        for run in _plan_part(study, part, choices):
            if not wanted or part.name in wanted:
                planned.setdefault(run_key(run.options | {"rates": run.rates}), run)
    return list(planned.values())


def _check_tables(study: Study) -> None:
    """Check the keys of a study's tables: a value under a wrong one would be ignored.

    Raises:
        ConfigError: no task or strategy has this name, or an option has its own place in a study.
    """
    by_task, by_strategy = {"tasks": study.tasks}, {"strategies": study.strategies}
    names: dict[str, Iterable[str]] = {"rates": study.rates, "strategies": study.strategies}
    options = {"options": study.options}
    for part in study.part:
        where = f"part {shortened(part.name)!r}"
        by_task[f"{where}, tasks_options"] = part.tasks_options
        names |= {f"{where}, rates": part.rates} if isinstance(part.rates, dict) else {}
        options[f"{where}, options"] = part.options
    for table, found in (by_task | by_strategy).items():
        options |= {f"{table}.{name}": values for name, values in found.items()}
    for table, values in by_task.items():
        _check_tasks(table, values)
    for table, strategies in names.items():
        _check_strategies(table, strategies)
    for table, stated in options.items():
        for name in sorted(_STATED_ELSEWHERE.keys() & stated.keys()):
            raise ConfigError(f"{table}: {name} has no effect here; {_STATED_ELSEWHERE[name]}")


def _check_tasks(table: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS)
            raise ConfigError(
                f"{table}: no task {shortened(name)!r}.{hint} Allowed: {listing(TASKS)}"
            )


def _check_strategies(table: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            known = canonical(name)
        except ConfigError as error:
            raise ConfigError(f"{table}: {error}") from error
        if known != name:
            raise ConfigError(f"{table}: the strategy {shortened(name)!r} is written {known!r}")


def _plan_part(
    study: Study, part: Part, choices: dict[tuple[str, ...], Candidates]
) -> Iterator[PlannedRun]:
    """Yield the runs of a part, task by task: first those that choose rates, then seed by seed."""
    for task in part.tasks:
        seeds: list[PlannedRun] = []
        for variant in _variants(part):
            options = _options(study, part, task, variant)
            rates = _candidates(study, part, options, choices)
            chooses = len(rates) > 1 and not part.rates_from
            for seed in range(part.seeds):
                seeded = options | {"seed": seed}
                if chooses and seed < part.rate_seeds:
                    for rate in rates:
                        yield PlannedRun(part.name, seeded, {rate: ()})
                else:
                    seeds.append(PlannedRun(part.name, seeded, rates))
        yield from sorted(seeds, key=lambda run: int(run.options["seed"]))


def _variants(part: Part) -> Iterator[Options]:
    """Yield each combination of a part's lists; options that say nothing are left out."""
    for *values, freeze in product(*(getattr(part, name) for name in _UNSET), part.freeze):
        variant = dict(zip(_UNSET, values, strict=True))
        stated = {name: value for name, value in variant.items() if value != _UNSET[name]}
        yield {"freeze": canonical(freeze), **stated}


def _options(study: Study, part: Part, task: str, variant: Options) -> Options:
    """Return the options of runs that differ in rate and seed only, checked by `FitConfig`."""
    find_task(task)
    options: Options = {"task": task, **study.options, **study.tasks.get(task, {})}
    options |= study.strategies.get(variant["freeze"], {})
    options |= part.options | part.tasks_options.get(task, {}) | variant
    try:
        stated = FitConfig.model_validate(options).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = shortened(f"{where}: {first['msg']}")
        raise ConfigError(f"part {shortened(part.name)!r}, {task}: {problem}") from error
    return dict(sorted(stated.items()))


def _candidates(
    study: Study, part: Part, options: Options, choices: dict[tuple[str, ...], Candidates]
) -> Candidates:
    """Return the rates to choose from; remember them for parts that take theirs from this one."""
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
    seeds = range(part.rate_seeds)
    choice = {
        rate: tuple(run_key(options | {"seed": seed, "lr": rate}) for seed in seeds)
        for rate in rates
    }
    # Rates are lent only by cells that nothing but task and strategy sets apart.
    is_plain = not {"reinit", "init_from", "backbone"} & set(options)
    return choices.setdefault((part.name, task, freeze), choice) if is_plain else choice
