"""One run of a sweep, in a process of its own: its memory is its own, and so are its crashes.

The process ends with the sweep, however that ends. What it leaves in its folder (the state of
`training.run.checkpoint` and the history) lets the next sweep go on from the last evaluation.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from deltas.delta import Delta
from deltas.errors import DeltaError
from deltas.format import write_atomically
from deltas.hardware import keep_freed_memory
from training.errors import ConfigError, TrainingError
from training.options import FitConfig
from training.run.loop import Progress
from training.run.train_delta import train_delta
from training.study.results import History, Machine, RunOutcome

_LOG = "log.txt"
_OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Trial:
    """What a run's process needs to know.

    Attributes:
        options: of `training.fit`.
        data: where the rows are, as `--data` takes it.
        folder: for what the run writes; kept when the run is stopped.
        threads: torch threads.
        workers: how many such processes there are at a time, for the record.
    """

    options: Mapping[str, Any]
    data: str | None
    folder: Path
    threads: int
    workers: int


def fit_command(options: Mapping[str, Any]) -> str:
    """The command that repeats a run."""
    words = ["python", "-m", "training.fit"]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):  # flags without a value
            words += [flag] if value else []
        else:
            words += [flag, f"{value}"]
    return shlex.join(words)


def run_trial(trial: Trial, answer: Connection) -> None:
    """Body of the process: sends {"outcome": ...} or {"error": "..."} as JSON, once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the sweep decides
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    trial.folder.mkdir(parents=True, exist_ok=True)
    with (trial.folder / _LOG).open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    torch.set_num_threads(trial.threads)
    keep_freed_memory()
    try:
        said: dict[str, Any] = {"outcome": run_outcome(trial).model_dump(mode="json")}
    except (TrainingError, DeltaError, OSError) as error:
        said = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the other runs go on, whatever it is
        traceback.print_exc()
        said = {"error": f"{type(error).__name__}: {error}"}
    answer.send_bytes(json.dumps(said).encode())


def last_log_line(folder: Path) -> str:
    """The last line that a run's process wrote, "" if there is none."""
    try:
        lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _end_with_the_sweep() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Recorder:
    """Keeps a run's history in a file, so that a resumed run has all of it.

    A step that was evaluated, but not saved before a stop, is evaluated again: its last line
    counts.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._losses: list[float] = []
        self.first_step: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Take the report of a step."""
        if self.first_step is None:
            self.first_step = progress.step
            if progress.step == 1:
                self._path.unlink(missing_ok=True)
        self._losses.append(progress.loss)
        if progress.metrics is None or progress.metric is None:
            return
        train_loss = sum(self._losses) / len(self._losses)
        self._losses = []
        line = [progress.step, train_loss, progress.metrics["loss"], progress.metric]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def history(self) -> History:
        """All evaluations so far, numbers rounded to six digits."""
        points: dict[int, list[float]] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            step, *numbers = json.loads(line)
            points[step] = [float(f"{number:.6g}") for number in numbers]
        steps = sorted(points)
        train_loss, loss, metric = zip(*(points[step] for step in steps), strict=True)
        return History(step=tuple(steps), train_loss=train_loss, loss=loss, metric=metric)


def run_outcome(trial: Trial) -> RunOutcome:
    """Carry the run out, or what is left of it.

    The outcome is kept in the run's folder until the sweep has recorded it: a sweep that is stopped
    between the two would lose a whole run, since nothing is left to resume after the end.

    Raises:
        TrainingError: the options can't be used, the run diverged, or the rows are the sample.
        DeltaError: the backbone can't be used.
    """
    config = FitConfig.model_validate(
        {**trial.options, "data": trial.data, "out": trial.folder, "resume": True}
        | {"overwrite": True}
    )
    kept = _kept_outcome(trial)
    if kept is not None:
        return kept
    recorder = Recorder(trial.folder / "history.jsonl")
    path, delta = train_delta(config, command=fit_command(trial.options), report=recorder)
    manifest = delta.manifest
    if manifest.training.data == "sample" and trial.data != "sample":
        raise ConfigError("trained on the generated sample; set GLUE_DIR, or give --data")
    outcome = _outcome(delta, path.stat().st_size, recorder, trial)
    write_atomically(trial.folder / _OUTCOME, outcome.model_dump_json().encode())
    return outcome


def _kept_outcome(trial: Trial) -> RunOutcome | None:
    """What an earlier process of this run ended with, if it was not recorded."""
    path = trial.folder / _OUTCOME
    if not path.is_file():
        return None
    try:
        outcome = RunOutcome.model_validate_json(path.read_bytes())
    except ValidationError:  # of another version: the run is made again
        return None
    # Rows are no part of a run's key: a kept outcome on generated ones is none on real ones.
    return outcome if (outcome.data == "sample") == (trial.data == "sample") else None


def forget_outcome(folder: Path) -> None:
    """Remove what was kept in a run's folder, once it is recorded."""
    (folder / _OUTCOME).unlink(missing_ok=True)


def _outcome(delta: Delta, delta_bytes: int, recorder: Recorder, trial: Trial) -> RunOutcome:
    manifest = delta.manifest
    facts = manifest.training
    return RunOutcome(
        task=manifest.task.name,
        strategy=manifest.strategy.served_as,
        metric=manifest.primary_metric,
        scores=manifest.metrics,
        history=recorder.history(),
        train_rows=facts.train_rows,
        selection_rows=facts.selection_rows,
        data=facts.data,
        data_note=facts.data_note,
        data_digest=facts.data_digest,
        epochs=facts.epochs,
        steps=facts.steps,
        batch_size=facts.batch_size,
        learning_rate=facts.learning_rate,
        head_learning_rate=facts.head_learning_rate,
        precision=facts.precision,
        seconds=facts.duration_s,
        resumed=recorder.first_step != 1,
        cpu_seconds=_cpu_seconds(),
        peak_bytes=_peak_bytes(),
        trained=manifest.trainable_parameters,
        total=manifest.total_parameters,
        delta_bytes=delta_bytes,
        backbone=manifest.backbone.id,
        fingerprint=manifest.backbone.fingerprint,
        machine=machine(trial.threads, trial.workers),
        versions=facts.versions,
        git_commit=facts.git_commit,
    )


def machine(threads: int, workers: int) -> Machine:
    """This machine, in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return Machine(cpu=cpu, cores=cores, threads=threads, workers=workers, system=system)


def _cpu_seconds() -> float:
    """What this process has computed since it was forked."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return round(used.ru_utime + used.ru_stime, 1)


def _peak_bytes() -> int:
    """Most memory that this process held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
