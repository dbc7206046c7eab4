"""One run of a sweep, in a process of its own: a crash or a lack of memory ends only that run.

The process ends with the sweep, however the sweep ends. The checkpoint and the history in its
folder let the next sweep continue from the last evaluation. `training.study.run_pool` starts the
processes, or `training.study.ray_tasks` on a cluster; the run itself is `training.run.train_delta`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
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
from deltas.errors import DeltaError, error_text
from deltas.format import write_atomically
from deltas.hardware import keep_freed_memory
from training.errors import ConfigError, TrainingError
from training.options import FitConfig, flag_of, shared_fields
from training.run.loop.loop import Progress
from training.run.train_delta import train_delta
from training.study.results import History, Machine, RunOutcome

_LOG = "log.txt"
OUTCOME = "outcome.json"  # in the run's folder until the sweep has recorded it


@dataclass(frozen=True)
class Trial:
    """One run of a sweep and the conditions of its process; `folder` is kept if it is stopped."""

    options: Mapping[str, Any]
    data: str | None
    folder: Path
    threads: int
    workers: int


def fit_command(options: Mapping[str, Any]) -> str:
    """Return the command that repeats a run."""
    words = ["python", "-m", "training.fit"]
    for name, value in options.items():
        if isinstance(value, bool):  # flags without a value
            words += [flag_of(name)] if value else []
        else:
            words += [flag_of(name), f"{value}"]
    return shlex.join(words)


class TrialProcess:
    """Runs a trial in a process of its own, which ends with the process that made it.

    Attributes:
        answer: connection that can be read when the trial has ended, in whatever way.
    """

    def __init__(self, trial: Trial) -> None:
        self._folder = trial.folder
        os.environ["OMP_NUM_THREADS"] = str(trial.threads)
        # Runs are forked from a process that has imported everything and computed nothing.
        context = multiprocessing.get_context("forkserver")
        loaded = [Trial.__module__]
        if trial.options.get("backbone"):  # a run over the packaged one loads no transformers
            loaded.append("transformers.models.bert.modeling_bert")
        context.set_forkserver_preload(loaded)
        self.answer, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=run_trial, args=(trial, sender), daemon=True)
        self._process.start()
        sender.close()

    def message(self) -> dict[str, Any]:
        """Wait for the end; return {"outcome": ...} or {"error": "..."}."""
        try:
            content = self.answer.recv_bytes()
        except EOFError:
            content = b""
        self.answer.close()
        self._process.join()
        return dict(json.loads(content)) if content else {"error": self._death()}

    def stop(self) -> None:
        """End the process; the trial may be continued later."""
        self._process.terminate()
        self._process.join()

    def _death(self) -> str:
        code = self._process.exitcode
        last_line = last_log_line(self._folder)
        hint = " (killed; perhaps there was not enough memory)" if code == -9 else ""
        return (
            f"its process ended with exit code {code}{hint}{': ' if last_line else ''}{last_line}"
        )


def run_trial(trial: Trial, answer: Connection) -> None:
    """Run a trial in this process; send {"outcome": ...} or {"error": "..."} as JSON, once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the sweep decides
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    try:
        trial.folder.mkdir(parents=True, exist_ok=True)
        with (trial.folder / _LOG).open("w", encoding="utf-8") as log:
            os.dup2(log.fileno(), sys.stdout.fileno())
            os.dup2(log.fileno(), sys.stderr.fileno())
        torch.set_num_threads(trial.threads)
        keep_freed_memory()
        message: dict[str, Any] = {"outcome": run_outcome(trial).model_dump(mode="json")}
    except (TrainingError, DeltaError, OSError) as error:
        message = {"error": error_text(error)}
    except Exception as error:  # noqa: BLE001 - no error of one run may stop the other runs
        traceback.print_exc()
        message = {"error": f"{type(error).__name__}: {error}"}
    answer.send_bytes(json.dumps(message).encode())


def last_log_line(folder: Path) -> str:
    """Return the last line that a run's process wrote, "" if there is none."""
    try:
        lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().split("\n")
    except OSError:
        return ""
    return lines[-1].strip()


def _end_with_the_sweep() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Recorder:
    """Records the evaluations of a run in a file, so that a resumed run has all of them.

    A step that was evaluated, but not checkpointed before a stop, is evaluated again. The last line
    of a step counts.
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
        with self._path.open("a+b") as file:
            # A full disk or a crash may have cut the last line off.
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(line).encode() + b"\n")

    def history(self) -> History:
        """Return all evaluations so far, rounded to six significant digits.

        A run without steps, as that of a solved head, has none. A last line without a line end was
        cut off; it is ignored.
        """
        points: dict[int, list[float]] = {}
        if not self._path.exists():
            return History()
        for line in self._path.read_bytes().split(b"\n")[:-1]:
            step, *numbers = json.loads(line)
            points[step] = [float(f"{number:.6g}") for number in numbers]
        if not points:
            return History()
        steps = sorted(points)
        train_loss, loss, metric = zip(*(points[step] for step in steps), strict=True)
        return History(step=tuple(steps), train_loss=train_loss, loss=loss, metric=metric)


def run_outcome(trial: Trial) -> RunOutcome:
    """Carry the run out, or the rest of it.

    The outcome is kept in the run's folder until the sweep has recorded it. Otherwise a sweep that
    is stopped in between would lose the run, because a finished run leaves no checkpoint.

    Raises:
        TrainingError: unusable options, a diverged run, or generated rows without `--data sample`.
        DeltaError: an unusable backbone.
    """
    fixed = {"data": trial.data, "out": trial.folder, "resume": True, "overwrite": True}
    config = FitConfig.model_validate({**trial.options, **fixed})
    kept = _kept_outcome(trial)
    if kept is not None:
        return kept
    recorder = Recorder(trial.folder / "history.jsonl")
    path, delta = train_delta(config, command=fit_command(trial.options), report=recorder)
    if delta.manifest.training.data == "sample" and trial.data != "sample":
        raise ConfigError("trained on the generated sample; set GLUE_DIR, or give --data")
    outcome = _outcome(delta, path.stat().st_size, recorder, trial)
    write_atomically(trial.folder / OUTCOME, outcome.model_dump_json().encode())
    return outcome


def _kept_outcome(trial: Trial) -> RunOutcome | None:
    """Return the outcome of an earlier process of this run, if it was not recorded."""
    try:
        outcome = RunOutcome.model_validate_json((trial.folder / OUTCOME).read_bytes())
    except (FileNotFoundError, ValidationError):  # written by another version: made again
        return None
    # A run's key says nothing about its rows: an outcome on the sample is none on real rows.
    return outcome if (outcome.data == "sample") == (trial.data == "sample") else None


def _outcome(delta: Delta, delta_bytes: int, recorder: Recorder, trial: Trial) -> RunOutcome:
    manifest = delta.manifest
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = shared_fields(manifest.training, RunOutcome)
    facts["history"] = recorder.history()  # that of the manifest is shortened
    return RunOutcome(
        **facts,
        task=manifest.task.name,
        strategy=manifest.strategy.served_as,
        metric=manifest.primary_metric,
        scores=manifest.metrics,
        seconds=manifest.training.duration_s,
        resumed=manifest.training.steps > 0 and recorder.first_step != 1,
        cpu_seconds=round(used.ru_utime + used.ru_stime, 1),
        peak_bytes=used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        trained=manifest.trainable_parameters,
        total=manifest.total_parameters,
        delta_bytes=delta_bytes,
        backbone=manifest.backbone.id,
        fingerprint=manifest.backbone.fingerprint,
        machine=machine(trial.threads, trial.workers),
    )


def machine(threads: int, workers: int) -> Machine:
    """Describe this machine."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name.*?:(.*)", info.read_text(), re.M) if info.exists() else None
    cpu = found[1].strip() if found else platform.processor() or platform.machine()
    cores = os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}"
    return Machine(cpu=cpu, cores=cores, threads=threads, workers=workers, system=system)
