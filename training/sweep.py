"""Many runs: `python -m training.sweep --workers 2` makes what a study declares and is missing.

One JSON line a finished run is added to --out; a run that is there already is not repeated, so the
command may be stopped at any time (Ctrl-C, kill -9) and started again: runs that were stopped go on
from their last evaluation. A run that fails is recorded with its error, and the others go on.
Reading order: `training.study.plan` (which runs), `training.study.trial` (one run), then here.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.data.glue import load_task
from training.errors import ConfigError, TaskError, TrainingError
from training.study.plan import PlannedRun, Study, make_study, plan, read_study
from training.study.results import Run, read_runs
from training.study.run_pool import Estimate, RunPool, format_duration

STUDY = Path("docs/results/study.toml")
RUNS = Path("docs/results/runs.jsonl")
# Of studies that the command line declares: the committed results are those of committed studies.
OWN_RUNS = Path("runs/study/runs.jsonl")
WORK = Path("runs/sweep")
_LISTS = ("tasks", "freeze", "reinit", "init_from", "backbone", "train_rows")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.sweep") -> int:
    """Run the command; returns the exit code: 0 done, 1 a run failed, 2 misuse, 130 stopped."""
    try:
        options = _parser(prog).parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    if options.out is None:
        options.out = OWN_RUNS if _own_study(options) else RUNS
    try:
        planned = plan(_study(options), options.only)
        runs = read_runs(options.out)
        if options.dry_run:
            sys.stdout.write(describe(planned, runs, options.workers))
            return 0
        _check_data(planned, options.data)
        with _alone(options.out, "--out"), _alone(options.work, "--work"), _stoppable():
            return RunPool(planned, options).make_all()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on where it was\n")
        return 130
    except (TrainingError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError | TaskError) else 1


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make the runs of a study that are missing, one JSON line each.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", type=Path, help=f"file that declares the runs (default: {STUDY})")
    add("--only", type=_words, default=(), help="parts of the study, a,b")
    add(
        "--out", type=Path, help=f"file of the results (default: {RUNS}; without a file {OWN_RUNS})"
    )
    add("--work", type=Path, default=WORK, help="folder for unfinished runs (default: %(default)s)")
    add("--workers", type=_positive, default=1, help="runs at a time (default: 1)")
    add("--threads", type=_positive, default=1, help="torch threads of a run (default: 1)")
    add("--data", help="hub, sample, or folder of <task>/<split>.parquet (default: $GLUE_DIR, hub)")
    add("--dry-run", action="store_true", help="list the runs, with an estimate of their time")
    add("--retry-failed", action="store_true", help="also make runs again that failed")
    add("--keep-deltas", action="store_true", help="leave the deltas of finished runs in --work")
    own = parser.add_argument_group(
        "a study without a file",
        "Lists as a,b; where a value has a comma itself, as 'a,b; c', and such a one alone 'a,b;'.",
    )
    for name in _LISTS:
        own.add_argument(f"--{name.replace('_', '-')}", type=_words)
    own.add_argument("--rates", type=_words, help="learning rates (default: the strategy's own)")
    own.add_argument("--seeds", type=_positive, help="how many seeds, from 0")
    own.add_argument("--rate-seeds", type=_positive, help="seeds that run with every rate")
    own.add_argument("--set", type=_words, help="other options of training.fit: epochs=2,evals=5")
    return parser


def _words(text: str) -> tuple[str, ...]:
    """Values between commas, or between semicolons if there is one: "bitfit:query,key; head"."""
    separator = ";" if ";" in text else ","
    return tuple(word.strip() for word in text.split(separator) if word.strip())


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _own_study(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line declares of a study of its own; empty if a file declares the study."""
    names = (*_LISTS, "rates", "seeds", "rate_seeds", "set")
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def _study(options: argparse.Namespace) -> Study:
    """The study of the file, or the one that the command line declares."""
    given = _own_study(options)
    if not given:
        return read_study(options.study or STUDY)
    if options.study:
        raise ConfigError("--study declares the runs; leave out the options of a study of its own")
    extra = dict(word.partition("=")[::2] for word in given.pop("set", ()))
    part: dict[str, Any] = {"name": "command line", "options": extra, **given}
    if "tasks" not in given or "freeze" not in given:
        raise ConfigError("a study without a file needs --tasks and --freeze")
    return make_study({"part": [part]}, "command line")


def describe(planned: Sequence[PlannedRun], finished: Mapping[str, Run], workers: int) -> str:
    """One line a run, with what it is expected to take, and the sum of what is missing."""
    estimate = Estimate(finished)
    lines, left, missing = [], 0.0, 0
    for run in planned:
        made = run.find(finished)
        chosen = run.chosen(finished)
        rates = [chosen] if chosen else [rate for rate, _ in run.rate.candidates]
        told = (
            f"{rates[0]:g}"
            if len(rates) == 1
            else f"best of {', '.join(map('{:g}'.format, rates))}"
        )
        seconds = estimate.seconds(run.options)
        if made is None:
            left, missing = left + seconds, missing + 1
        others = {name: run.options[name] for name in _LISTS[2:] if name in run.options}
        extra = "".join(f"  {name} {value}" for name, value in others.items())
        lines.append(
            f"{run.part:12} {run.options['task']:5} {run.options['freeze']:24} "
            f"seed {run.options['seed']}  lr {told}{extra}  "
            + (format_duration(seconds) if made is None else "done" if made.outcome else "failed")
        )
    basis = "a guess: nothing is measured yet" if estimate.is_guess else "from the finished runs"
    lines.append(
        f"{missing} of {len(planned)} runs to make, about {format_duration(left / workers)} with "
        f"{workers} worker{'s' * (workers > 1)} ({basis})"
    )
    return "\n".join(lines) + "\n"


def _check_data(planned: Sequence[PlannedRun], data: str | None) -> None:
    """Find out before the first run whether every task's rows are there, and real."""
    for task in sorted({str(run.options["task"]) for run in planned}):
        if load_task(task, data).source == "sample" and data != "sample":
            raise ConfigError(
                f"{task}: no real rows in reach, only the generated sample; set GLUE_DIR, or "
                "insist with --data sample"
            )


@contextmanager
def _alone(path: Path, option: str) -> Iterator[None]:
    """Hold the results, or the folder, for this process; the claim ends with it, however it ends.

    Sweeps with other results, but one folder, would write into the same runs' folders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another sweep is using {path}; wait for it, or give another {option}"
            ) from error
        yield


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops like Ctrl-C, also where a shell had the process ignore it."""

    def stop(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = [signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)]
    # Read by numerical libraries when the processes of the runs load them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
