"""The workers of a sweep: starts runs, records how they end, says how far it is.

How long a run will take, judged by the finished runs that are most like it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from training.data.tasks import TASKS
from training.errors import ConfigError
from training.options import default_epochs
from training.study.plan import PlannedRun
from training.study.results import Run, RunOutcome, append_run, read_runs, run_key
from training.study.trial import Trial, fit_command, forget_outcome, last_log_line, run_trial

# Seconds for a row in a training step where nothing was measured yet; a guess, and called one.
GUESSED_SECONDS_A_ROW = 0.03


class Estimate:
    """Seconds for a row that a run visits, from finished runs."""

    def __init__(self, runs: Mapping[str, Run]) -> None:
        measured: dict[tuple[Any, ...], list[float]] = {}
        for run in runs.values():
            if run.outcome is None or run.outcome.resumed:
                continue
            cost = run.outcome.seconds / max(1.0, visited_rows(run.options))
            for likeness in _likenesses(run.options):
                measured.setdefault(likeness, []).append(cost)
        self._cost = {likeness: median(costs) for likeness, costs in measured.items()}

    @property
    def is_guess(self) -> bool:
        """Whether nothing was measured yet."""
        return not self._cost

    def seconds(self, options: Mapping[str, Any]) -> float:
        """Expected duration of a run."""
        costs = (self._cost[mark] for mark in _likenesses(options) if mark in self._cost)
        return next(costs, GUESSED_SECONDS_A_ROW) * visited_rows(options)


def visited_rows(options: Mapping[str, Any]) -> float:
    """Rows times epochs, as far as they cost: below a head, features are computed once."""
    task = TASKS[options["task"]]
    rows = options.get("train_rows") or task.canonical_rows[task.train_split]
    epochs = options.get("epochs") or default_epochs(rows)
    return float(rows if options["freeze"] == "head" else rows * epochs)


def _likenesses(options: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What a run has in common with others, most telling first."""
    task, rows = options["task"], options.get("train_rows")
    freeze = str(options["freeze"])
    kind = freeze.partition(":")[0].partition("@")[0]
    return [(task, freeze, rows), (task, kind, rows), (task, kind), (task,), ()]


def format_duration(seconds: float) -> str:
    """A duration for people: "45 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


_POLL_S = 30.0


@dataclass(frozen=True)
class _RunningTrial:
    planned: PlannedRun
    options: dict[str, Any]
    key: str
    folder: Path
    process: BaseProcess
    answer: Connection


class RunPool:
    """Makes the planned runs, several at a time.

    Args:
        planned: what to make, in order.
        options: `out`, `work`, `workers`, `threads`, `data`, `retry_failed`, `keep_deltas` of the
            command.
    """

    def __init__(self, planned: Sequence[PlannedRun], options: argparse.Namespace) -> None:
        self._options = options
        self._planned = planned
        self._waiting = list(planned)
        self._runs = read_runs(options.out)
        if options.retry_failed:
            self._runs = {key: run for key, run in self._runs.items() if run.outcome}
        self._running: list[_RunningTrial] = []
        self._hopeless: list[str] = []
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        # Each run is forked from a process that has loaded everything and computed nothing.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([Trial.__module__])

    def work(self) -> int:
        """Make all runs; returns 0, or 1 if one failed, also earlier, or could not be made."""
        with tqdm(
            total=len(self._waiting), unit="run", file=sys.stderr, disable=None, smoothing=0
        ) as bar:
            try:
                self._pass_over(bar)
                while self._start_runs() or self._running:
                    for running in self._ended():
                        self._record(running, bar)
            finally:
                self._stop()
        return self._conclude()

    def _start_runs(self) -> bool:
        """Fill the free workers; whether any was started."""
        started = False
        while len(self._running) < self._options.workers:
            found = self._next_run()
            if found is None:
                break
            self._running.append(self._start(*found))
            started = True
        return started

    def _pass_over(self, bar: tqdm[Any]) -> None:
        """Take off the list what is there already, and what no rate is left for."""
        waiting = []
        for planned in self._waiting:
            try:
                rate = planned.rate.resolve(self._runs)
            except ConfigError as error:
                self._hopeless.append(
                    f"{planned.options['task']} {planned.options['freeze']}: {error}"
                )
                bar.update()
                continue
            if rate is not None and run_key(planned.with_rate(rate)) in self._runs:
                bar.update()
                continue
            waiting.append(planned)
        self._waiting = waiting

    def _next_run(self) -> tuple[PlannedRun, dict[str, Any]] | None:
        """Take the first run whose rate is known off the list.

        The plan can't always tell that two parts ask for the same run; what is being made is left.
        """
        being_made = {running.key for running in self._running}
        for planned in self._waiting:
            rate = planned.rate.resolve(self._runs)
            if rate is None or run_key(planned.with_rate(rate)) in being_made:
                continue
            self._waiting.remove(planned)
            return planned, planned.with_rate(rate)
        return None

    def _start(self, planned: PlannedRun, options: dict[str, Any]) -> _RunningTrial:
        key = run_key(options)
        folder = self._options.work / key
        trial = Trial(
            options, self._options.data, folder, self._options.threads, self._options.workers
        )
        answer, question = self._context.Pipe(duplex=False)
        process = self._context.Process(target=run_trial, args=(trial, question), daemon=True)
        process.start()
        question.close()
        return _RunningTrial(planned, options, key, folder, process, answer)

    def _ended(self) -> list[_RunningTrial]:
        """Wait until at least one run has answered or died."""
        ready: list[object] = []
        while not ready:
            ready = list(wait([running.answer for running in self._running], _POLL_S))
        ended = [running for running in self._running if running.answer in ready]
        self._running = [running for running in self._running if running not in ended]
        return ended

    def _record(self, running: _RunningTrial, bar: tqdm[Any]) -> None:
        try:
            said = json.loads(running.answer.recv_bytes())
        except EOFError:
            said = None
        running.answer.close()
        running.process.join()
        if said is None:
            said = {"error": _death(running)}
        outcome = RunOutcome.model_validate(said["outcome"]) if "outcome" in said else None
        run = Run(
            key=running.key,
            part=running.planned.part,
            options=running.options,
            command=fit_command(running.options),
            error=said.get("error"),
            outcome=outcome,
        )
        append_run(self._options.out, run)
        self._runs[run.key] = run
        if outcome is not None:
            forget_outcome(running.folder)
            if not self._options.keep_deltas:
                shutil.rmtree(running.folder, ignore_errors=True)
        bar.update()
        self._pass_over(bar)
        self._tell(run, bar)

    def _tell(self, run: Run, bar: tqdm[Any]) -> None:
        """One line for a finished run, with the time that the rest is expected to take."""
        estimate = Estimate(self._runs)
        rest = self._rest()
        left = sum(map(estimate.seconds, rest)) / self._options.workers
        total = len(self._planned)
        names = [str(run.options.get(name, "")) for name in ("task", "freeze", "reinit")]
        how = f"failed: {run.error}"
        if run.outcome is not None:
            score = f"{run.outcome.metric} {run.outcome.dev_score:.3f}"
            how = f"{score}  {format_duration(run.outcome.seconds)}"
        about = f"{run.options['lr']:g} seed {run.options['seed']}"
        tqdm.write(
            f"[{total - len(rest)}/{total}] {' '.join(filter(None, names))} lr {about}  {how}  "
            f"({len(rest)} to make, about {format_duration(left)} left)",
            file=sys.stderr,
        )

    def _rest(self) -> list[dict[str, Any]]:
        """Options of the runs to make; one that two parts ask for counts once."""
        rest = {running.key: running.options for running in self._running}
        for planned in self._waiting:
            rate = planned.rate.resolve(self._runs)
            options = planned.options if rate is None else planned.with_rate(rate)
            rest.setdefault(run_key(options), options)
        return list(rest.values())

    def _stop(self) -> None:
        for running in self._running:
            running.process.terminate()
        for running in self._running:
            running.process.join()

    def _conclude(self) -> int:
        for problem in self._hopeless:
            sys.stderr.write(f"not made: {problem}\n")
        if self._waiting:
            sys.stderr.write(
                f"not made: {len(self._waiting)} runs, whose learning rates are chosen by runs "
                "that failed, or by runs of another part; make those\n"
            )
        failed = {run.key for planned in self._planned if (run := self._failed(planned))}
        if failed:
            sys.stderr.write(
                f"{len(failed)} runs failed; their errors are in {self._options.out}, "
                "--retry-failed makes them again\n"
            )
        return 1 if failed or self._hopeless or self._waiting else 0

    def _failed(self, planned: PlannedRun) -> Run | None:
        """The run, if it failed, now or in an earlier sweep, and was not made good since."""
        run = planned.find(self._runs)
        return run if run is not None and run.error else None


def _death(running: _RunningTrial) -> str:
    code = running.process.exitcode
    words = last_log_line(running.folder)
    hint = " (killed; perhaps there was not enough memory)" if code == -9 else ""
    return f"its process ended with exit code {code}{hint}{': ' if words else ''}{words}"
