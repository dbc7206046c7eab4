"""Many runs: `python -m training.sweep --workers 2` makes the missing runs of a study.

One JSON line per finished run is appended to --out, and a run that is there is not repeated. So the
command may be stopped at any time (Ctrl-C, kill -9) and started again: stopped runs continue from
their last evaluation. A failed run is recorded with its error, and the other runs go on. Read
`training.study.plan` next (the runs), then `training.study.run_pool` and `training.study.trial`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deltas.errors import home_or_name, home_path
from training.errors import ConfigError, run_command
from training.options import flag_of
from training.study.plan import PlannedRun, Study, make_study, plan, read_study
from training.study.results import Run, read_runs

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
    # The part of a study that the command line declares; empty for a study from a file.
    names = (*_LISTS, "rates", "seeds", "rate_seeds", "set")
    declared = {name: getattr(options, name) for name in names if getattr(options, name)}
    if options.out is None:
        options.out = COMMAND_LINE_RUNS if declared else RUNS
    planned = plan(_study(options, declared), options.only)
    runs = read_runs(options.out)
    if options.dry_run:
        sys.stdout.write(describe(planned, runs, options.workers))
        return 0
    from training.study.run_pool import RunPool

    _check_data(planned, options.data)
    with _locked(options.out, "--out"), _locked(options.work, "--work"), _stoppable():
        return RunPool(planned, options).make_all()


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
        help=f"file of the results (default: {RUNS}; without a file {COMMAND_LINE_RUNS})",
    )
    add(
        "--work",
        type=home_path,
        default=WORK,
        help="folder for unfinished runs (default: %(default)s)",
    )
    add("--workers", type=_positive, default=1, help="runs at a time (default: 1)")
    add("--threads", type=_positive, default=1, help="torch threads of a run (default: 1)")
    add(
        "--data",
        type=home_or_name,
        help="hub, sample, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)",
    )
    add("--dry-run", action="store_true", help="list the runs with an estimate of their time")
    add("--retry-failed", action="store_true", help="repeat failed runs, too")
    add("--keep-deltas", action="store_true", help="keep the deltas of finished runs in --work")
    group = parser.add_argument_group(
        "a study without a file",
        "Lists are written a,b. If a value has a comma itself, separate values by semicolons: "
        "'a,b; c', or 'a,b;' for a single one.",
    )
    for name in _LISTS:
        group.add_argument(flag_of(name), type=_words)
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
    if not declared:
        return read_study(options.study or STUDY)
    if options.study:
        raise ConfigError("--study declares the runs; leave out the options of a study of its own")
    if "tasks" not in declared or "freeze" not in declared:
        raise ConfigError("a study without a file needs --tasks and --freeze")
    part = {name: value for name, value in declared.items() if name != "set"}
    more = dict(word.partition("=")[::2] for word in declared.get("set", ()))
    return make_study({"part": [{"name": "command line", "options": more, **part}]}, "command line")


def describe(planned: Sequence[PlannedRun], finished: Mapping[str, Run], workers: int) -> str:
    """Write one line per run with its expected duration, and the sum of what is missing."""
    from training.run.plan.wording import format_duration
    from training.study.run_pool import Estimate

    estimate = Estimate(finished)
    lines, left, missing = [], 0.0, 0
    for run in planned:
        made, chosen = run.find(finished), run.chosen(finished)
        rates = [chosen] if chosen else list(run.rates)
        rate = ("best of " if len(rates) > 1 else "") + ", ".join(map("{:g}".format, rates))
        seconds = estimate.seconds(run.options)
        if made is None:
            left, missing = left + seconds, missing + 1
        others = {name: run.options[name] for name in _LISTS[2:] if name in run.options}
        extra = "".join(f"  {name} {value}" for name, value in others.items())
        lines.append(
            f"{run.part:12} {run.options['task']:5} {run.options['freeze']:24} "
            f"seed {run.options['seed']}  lr {rate}{extra}  "
            + (format_duration(seconds) if made is None else "done" if made.outcome else "failed")
        )
    basis = "a guess: nothing is measured yet" if estimate.is_guess else "from the finished runs"
    lines.append(
        f"{missing} of {len(planned)} runs to make, about {format_duration(left / workers)} with "
        f"{workers} worker{'s' * (workers > 1)} ({basis})"
    )
    return "\n".join(lines) + "\n"


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
