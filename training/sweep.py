"""Many runs: `python -m training.sweep --workers 2` makes the missing runs of a study.

One JSON line per finished run is appended to --out, and a run that is there is not repeated. So the
command may be stopped at any time (Ctrl-C, kill -9) and started again: stopped runs continue from
their last evaluation. A failed run is recorded with its error, and the other runs go on. Read
`training.study.plan` next (the runs), then `training.study.run_pool` and `training.study.trial`.
With --ray the runs are tasks of a cluster; the results are the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from deltas.errors import home_or_name, home_path
from training.errors import ConfigError, run_command
from training.options import flag_of
from training.study.plan import Options, PlannedRun, Study, make_study, narrow, plan, read_study
from training.study.results import Run, read_runs

if TYPE_CHECKING:
    from training.study.run_pool import Runner

STUDY = Path("docs/results/study.toml")
RUNS = Path("docs/results/runs.jsonl")
# Results of studies declared on the command line; docs/results is for the committed studies.
COMMAND_LINE_RUNS = Path("runs/study/runs.jsonl")
WORK = Path("runs/sweep")
_LISTS = ("tasks", "freeze", "reinit", "init_from", "backbone", "train_rows")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.sweep") -> int:
    """Run the command; returns the exit code: 0 done, 1 a run failed, 2 misuse, 130 stopped."""
    return run_command(
        lambda: _sweep(_parser(prog).parse_args(arguments)),
        "stopped; the same command continues from here",
    )


def _sweep(options: argparse.Namespace) -> int:
    # What the command line declares; empty for a study from a file.
    names = (*_LISTS, "rates", "seeds", "rate_seeds", "set")
    declared = {name: getattr(options, name) for name in names if getattr(options, name)}
    study = _study(options, declared)
    if options.out is None:
        # Fewer tasks or seeds of a file are runs of that file; with other options they are not.
        is_of_file = "set" not in declared if options.study else not declared
        options.out = (study.out or RUNS) if is_of_file else COMMAND_LINE_RUNS
    planned = plan(study, options.only)
    runs = read_runs(options.out)
    if options.dry_run:
        sys.stdout.write(describe(planned, runs, options.workers or 1, study.seconds_a_pass))
        return 0
    from training.study.run_pool import RunPool

    _check_data(planned, options.data)
    with (
        _locked(options.out, "--out"),
        _locked(options.work, "--work"),
        _runner(options) as runner,
        _stoppable(),
    ):
        return RunPool(planned, options, study.seconds_a_pass, runner).make_all()


@contextmanager
def _runner(options: argparse.Namespace) -> Iterator[Runner | None]:
    """Connect with Ray, if the command says so; sets the number of workers."""
    if options.ray is None:
        options.workers = options.workers or 1
        yield None
        return
    if find_spec("ray") is None:
        raise ConfigError("--ray needs the library ray; pip install 'deltabert[ray]'")
    from training.study.ray_tasks import cluster

    with cluster(options.ray or None, options.workers, options.threads) as runner:
        options.workers = runner.workers
        yield runner


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make the missing runs of a study, one JSON line each.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", type=home_path, help=f"file that declares the runs (default: {STUDY})")
    add("--only", type=_words, default=(), help="make only these parts of the study: a,b")
    add(
        "--out",
        type=home_path,
        help=f"file of the results (default: the study file's, or {RUNS}; for runs that no file "
        f"declares {COMMAND_LINE_RUNS})",
    )
    add(
        "--work",
        type=home_path,
        default=WORK,
        help="folder for unfinished runs (default: %(default)s)",
    )
    add("--workers", type=_positive, help="runs at a time (default: 1; on Ray, as many as fit)")
    add("--threads", type=_positive, default=1, help="torch threads of a run (default: 1)")
    add(
        "--data",
        type=home_or_name,
        help="hub, sample, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)",
    )
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="make the runs on the cluster of Ray at this address (HOST:PORT or auto), or on one "
        "that is started here; needs the extra ray",
    )
    add("--dry-run", action="store_true", help="list the runs with an estimate of their time")
    add("--retry-failed", action="store_true", help="repeat failed runs, too")
    add("--keep-deltas", action="store_true", help="keep the deltas of finished runs in --work")
    group = parser.add_argument_group(
        "a study without a file",
        "Lists are written a,b. If a value has a comma itself, separate values by semicolons: "
        "'a,b; c', or 'a,b;' for a single one. With --study, --tasks and --seeds leave out runs of "
        "the file, and --set replaces options of all its runs.",
    )
    for name in _LISTS:
        group.add_argument(flag_of(name), type=_words, help="values of this option of fit: a,b")
    group.add_argument("--rates", type=_words, help="learning rates (default: the strategy's)")
    group.add_argument("--seeds", type=_positive, help="number of seeds, from 0")
    group.add_argument("--rate-seeds", type=_positive, help="seeds that run with every rate")
    group.add_argument("--set", type=_words, help="other options of training.fit: epochs=2,evals=5")
    return parser


def _words(text: str) -> tuple[str, ...]:
    """Split at semicolons if there are any ("bitfit:query,key; head"), else at commas."""
    separator = ";" if ";" in text else ","
    return tuple(word.strip() for word in text.split(separator) if word.strip())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _study(options: argparse.Namespace, declared: dict[str, Any]) -> Study:
    """Return the study of the file, or the study that the command line declares."""
    more = _options(declared.get("set", ()))
    if options.study or not declared:
        if others := sorted(declared.keys() - {"tasks", "seeds", "set"}):
            raise ConfigError(
                f"--study declares the runs; leave out {', '.join(map(flag_of, others))} (--tasks "
                "and --seeds make fewer of them, --set changes their options)"
            )
        study = read_study(options.study or STUDY)
        return narrow(study, options.tasks or (), options.seeds, more) if declared else study
    if "tasks" not in declared or "freeze" not in declared:
        raise ConfigError("a study without a file needs --tasks and --freeze")
    part = {name: value for name, value in declared.items() if name != "set"}
    return make_study({"part": [{"name": "command line", "options": more, **part}]}, "command line")


def _options(words: Sequence[str]) -> dict[str, str]:
    """Read the options of --set."""
    options: dict[str, str] = {}
    for word in words:
        name, equals, value = map(str.strip, word.partition("="))
        if not (name and equals and value):
            raise ConfigError(f"--set {word}: give an option and its value, such as epochs=2")
        if name in options:
            raise ConfigError(f"--set gives {name} twice, {options[name]} and {value}; give one")
        options[name] = value
    return options


def describe(
    planned: Sequence[PlannedRun],
    finished: Mapping[str, Run],
    workers: int,
    assumed: Mapping[str, float] | None = None,
) -> str:
    """Write one line per run with its expected duration, and the sums of what is missing.

    `assumed` are the study's seconds of a row's forward pass, by task.
    """
    from training.run.plan.wording import format_duration
    from training.study.estimate import Estimate, forward_passes

    estimate = Estimate(finished, assumed)
    lines, missing = [], {run.part: list[Options]() for run in planned}
    backbones = {run.options.get("backbone") for run in planned}
    names = [name for name in _LISTS[2:] if name != "backbone" or len(backbones) > 1]
    for run in planned:
        made, chosen = run.find(finished), run.chosen(finished)
        if made is None:
            missing[run.part].append(run.options)
            state = format_duration(estimate.seconds(run.options))
        else:
            state = "done" if made.outcome else "failed"
        rates = [chosen] if chosen else list(run.rates)
        lines.append(f"{_run_words(run, rates, names)}  {state}")

    def cost(runs: Sequence[Options]) -> str:
        seconds = sum(map(estimate.seconds, runs)) / workers
        return f"about {format_duration(seconds)} with {workers} worker{'s' * (workers > 1)}"

    if len(missing) > 1:
        lines += [f"{part}: {len(runs):,} to make, {cost(runs)}" for part, runs in missing.items()]
    left = list(chain.from_iterable(missing.values()))
    basis = "; ".join(sorted(set(map(estimate.basis, left)))) or "nothing is left"
    lines.append(
        f"{len(left):,} of {len(planned):,} runs to make, {cost(left)} ({basis}): "
        f"{sum(map(forward_passes, left)):,.0f} forward passes of rows, a step's rows counted "
        "five times if whole matrices train, otherwise three times"
    )
    return "\n".join(lines) + "\n"


def _run_words(run: PlannedRun, rates: Sequence[float], names: Sequence[str]) -> str:
    """Describe a run on one line; `names` are the options to show besides the usual ones."""
    rate = ("best of " if len(rates) > 1 else "") + ", ".join(map("{:g}".format, rates))
    extra = "".join(f"  {name} {run.options[name]}" for name in names if name in run.options)
    return (
        f"{run.part:12} {run.options['task']:5} {run.options['freeze']:24} "
        f"seed {run.options['seed']}  lr {rate}{extra}"
    )


def _check_data(planned: Sequence[PlannedRun], data: str | None) -> None:
    """Find out before the first run whether real rows of every task are there."""
    from training.data.glue import load_task

    for task in sorted({str(run.options["task"]) for run in planned}):
        if load_task(task, data).source == "sample" and data != "sample":
            raise ConfigError(
                f"{task}: no real rows in reach, only the generated sample; set GLUE_DIR, or "
                "insist with --data sample"
            )


@contextmanager
def _locked(path: Path, option: str) -> Iterator[None]:
    """Lock a file or folder for this process; the lock ends with the process.

    Two sweeps with different results but one folder would write into the folders of the same runs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"another sweep is using {path}; wait for it, or give another {option}"
        ) from error


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C, and Ctrl-C act even if the shell had it ignored."""

    def stop(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = [signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)]
    # The processes of the runs inherit it and read it when they import libraries.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
