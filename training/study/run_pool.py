"""Makes the runs of a sweep, several at a time, and records their results.

Each run has a process of its own (`training.study.trial`), on this machine or, by
`training.study.ray_tasks`, on a cluster. After each run it says how long the
others will take (`training.study.estimate`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from training.errors import ConfigError
from training.run.plan.wording import format_duration
from training.study.estimate import Estimate
from training.study.plan import PlannedRun
from training.study.results import Run, append_run, read_runs, run_key
from training.study.trial import OUTCOME, Trial, TrialProcess, fit_command


@dataclass(frozen=True)
class _RunningTrial:
    planned: PlannedRun
    options: dict[str, Any]
    key: str
    folder: Path
    job: Any


class Runner(Protocol):
    """Runs trials somewhere; a job is a trial that was started."""

    def start(self, trial: Trial) -> Any:
        """Start a trial, and return its job."""

    def ended(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Wait until at least one job has ended, and return those that have."""

    def message(self, job: Any) -> dict[str, Any]:
        """Return {"outcome": ...} or {"error": "..."} of a job that has ended."""

    def stop(self, jobs: Sequence[Any]) -> None:
        """End jobs before their time."""


class LocalRunner:
    """Runs trials in processes of this machine."""

    def start(self, trial: Trial) -> TrialProcess:
        """Start a process."""
        return TrialProcess(trial)

    def ended(self, jobs: Sequence[TrialProcess]) -> list[TrialProcess]:
        """Wait until at least one process has answered or died."""
        ready = wait([job.answer for job in jobs])
        return [job for job in jobs if job.answer in ready]

    def message(self, job: TrialProcess) -> dict[str, Any]:
        """Return the message of a process."""
        return job.message()

    def stop(self, jobs: Sequence[TrialProcess]) -> None:
        """End processes before their time."""
        for job in jobs:
            job.stop()


class RunPool:
    """Makes the planned runs in their order, several at a time; takes the command's options.

    `assumed` are the study's seconds of a row's forward pass, by task. `runner` runs the trials;
    None runs them on this machine.
    """

    def __init__(
        self,
        planned: Sequence[PlannedRun],
        options: argparse.Namespace,
        assumed: Mapping[str, float] | None = None,
        runner: Runner | None = None,
    ) -> None:
        self._options = options
        self._runner = runner or LocalRunner()
        self._assumed = assumed
        self._planned = planned
        self._waiting = list(planned)
        self._runs = read_runs(options.out)
        if options.retry_failed:
            self._runs = {key: run for key, run in self._runs.items() if run.outcome}
        self._running: list[_RunningTrial] = []
        self._hopeless: list[str] = []

    def make_all(self) -> int:
        """Make all runs; returns 0, or 1 if a run failed, now or earlier, or could not be made."""
        with tqdm(
            total=len(self._waiting), unit="run", file=sys.stderr, disable=None, smoothing=0
        ) as bar:
            try:
                self._drop_made(bar)
                while self._start_runs():
                    for running in self._ended():
                        self._record(running, bar)
            finally:
                self._runner.stop([running.job for running in self._running])
        return self._conclude()

    def _start_runs(self) -> bool:
        """Start runs whose rate is known until all workers are busy; False if no run goes on."""
        for planned in list(self._waiting):
            if len(self._running) == self._options.workers:
                break
            rate = planned.resolve_rate(self._runs)
            if rate is None:
                continue
            options = planned.with_rate(rate)
            # The plan can't always tell that two parts ask for the same run.
            if run_key(options) not in {running.key for running in self._running}:
                self._waiting.remove(planned)
                self._running.append(self._start(planned, options))
        return bool(self._running)

    def _drop_made(self, bar: tqdm[Any]) -> None:
        """Drop the waiting runs that were made already or whose rates all diverged."""
        waiting = []
        for planned in self._waiting:
            try:
                rate = planned.resolve_rate(self._runs)
            except ConfigError as error:
                self._hopeless.append(
                    f"{planned.options['task']} {planned.options['freeze']}: {error}"
                )
                continue
            if rate is None or run_key(planned.with_rate(rate)) not in self._runs:
                waiting.append(planned)
        bar.update(len(self._waiting) - len(waiting))
        self._waiting = waiting

    def _start(self, planned: PlannedRun, options: dict[str, Any]) -> _RunningTrial:
        key = run_key(options)
        folder = self._options.work / key
        trial = Trial(
            options, self._options.data, folder, self._options.threads, self._options.workers
        )
        return _RunningTrial(planned, options, key, folder, self._runner.start(trial))

    def _ended(self) -> list[_RunningTrial]:
        """Wait until at least one run has ended."""
        jobs = self._runner.ended([running.job for running in self._running])
        ended = [running for running in self._running if running.job in jobs]
        self._running = [running for running in self._running if running not in ended]
        return ended

    def _record(self, running: _RunningTrial, bar: tqdm[Any]) -> None:
        run = Run(
            key=running.key,
            part=running.planned.part,
            options=running.options,
            command=fit_command(running.options),
            **self._runner.message(running.job),
        )
        append_run(self._options.out, run)
        self._runs[run.key] = run
        if run.outcome is not None:
            (running.folder / OUTCOME).unlink(missing_ok=True)
            if not self._options.keep_deltas:
                shutil.rmtree(running.folder, ignore_errors=True)
        bar.update()
        self._drop_made(bar)
        self._tell(run)

    def _tell(self, run: Run) -> None:
        """Write one line about a finished run, with the time that the other runs will take."""
        rest = self._rest()
        left = sum(map(Estimate(self._runs, self._assumed).seconds, rest)) / self._options.workers
        rest_words = f"{len(rest)} to make" + (
            f", about {format_duration(left)} left" if rest else ""
        )
        total = len(self._planned)
        names = [str(run.options.get(name, "")) for name in ("task", "freeze", "reinit")]
        result = f"failed: {run.error}"
        if run.outcome is not None:
            score = f"{run.outcome.metric} {run.outcome.dev_score:.3f}"
            result = f"{score}  {format_duration(run.outcome.seconds)}"
        tqdm.write(
            f"[{total - len(rest)}/{total}] {' '.join(filter(None, names))} "
            f"lr {run.options['lr']:g} seed {run.options['seed']}  {result}  "
            f"({rest_words})",
            file=sys.stderr,
        )

    def _rest(self) -> list[dict[str, Any]]:
        """Return the options of the runs that are left; a run of two parts counts once."""
        rest = {running.key: running.options for running in self._running}
        for planned in self._waiting:
            rate = planned.resolve_rate(self._runs)
            options = planned.options if rate is None else planned.with_rate(rate)
            rest.setdefault(run_key(options), options)
        return list(rest.values())

    def _conclude(self) -> int:
        for problem in self._hopeless:
            sys.stderr.write(f"not made: {problem}\n")
        if self._waiting:
            sys.stderr.write(
                f"not made: {len(self._waiting)} runs; the runs that choose their learning rates "
                "failed or belong to another part, make those first\n"
            )
        # Failures of earlier sweeps count until the run succeeds.
        found = [planned.find(self._runs) for planned in self._planned]
        failed = {run.key for run in found if run is not None and run.error}
        if failed:
            sys.stderr.write(
                f"{len(failed)} runs failed; their errors are in {self._options.out}, "
                "--retry-failed makes them again\n"
            )
        return 1 if failed or self._hopeless or self._waiting else 0
