"""Stores the results of a sweep: one JSON line per run with its options, outcome and cost.

`training.sweep` appends lines (`training.study.run_pool`); `training.report` reads them and nothing
else (`training.study.aggregates`). The last line of a key counts, so a repeated run replaces a
failed one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from deltas.manifest import SplitMetrics
from training.errors import DataError

# Options that say where and how a run is carried out; they don't identify it.
_NOT_PART_OF_A_RUN = {"data", "device", "out", "overwrite", "resume", "json", "json_"}
# Values of options that had no name in the first studies, whose runs are known by their keys.
_FORMER = {"pooling": "cls", "pairs": "joint", "head_start": "random"}
_DIVERGED = "training diverged"  # start of such an error's message, see `training.run.loop.loop`


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Stored):
    """The machine that carried a run out; times compare only within one machine."""

    cpu: str
    cores: int
    threads: int  # torch threads of the run
    workers: int  # runs at a time
    system: str


class History(_Stored):
    """The evaluations of a run, as columns of equal length: loss and metric on selection rows.

    `train_loss` is the mean loss of the steps since the last evaluation.
    """

    step: tuple[int, ...] = ()
    train_loss: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    metric: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _equally_long(self) -> History:
        if len({len(self.step), len(self.train_loss), len(self.loss), len(self.metric)}) != 1:
            raise ValueError("step, train_loss, loss and metric are not equally long")
        return self


class RunOutcome(_Stored):
    """Scores and cost of a finished run; most fields are those of the manifest.

    `seconds` is the duration of the training with its evaluations, of a resumed run only from where
    it continued. `cpu_seconds` is the CPU time of the run's process, including its start and all
    threads; unlike `seconds` hardly longer if the machine is busy. Earlier versions have none.
    """

    task: str
    strategy: str  # name as served, with its re-initialisation: "initbias+bitfit"
    metric: str
    scores: dict[str, SplitMetrics]  # by split: "selection" and the dev splits
    history: History
    train_rows: int
    selection_rows: int
    data: str
    data_note: str
    data_digest: str
    epochs: float
    steps: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float | None = None
    precision: str
    seconds: float
    resumed: bool
    cpu_seconds: float | None = None
    peak_bytes: int  # peak memory of the run's process
    trained: int  # number of trained parameters, head included
    total: int  # number of parameters of backbone and head
    delta_bytes: int
    backbone: str
    fingerprint: str
    machine: Machine
    versions: dict[str, str]
    git_commit: str | None = None

    @property
    def selection_score(self) -> tuple[float, float]:
        """Primary metric and minus the loss on the selection rows; higher is better."""
        values = self.scores["selection"].values
        return values[self.metric], -values.get("loss", 0.0)

    @property
    def num_rows(self) -> int:
        """Number of the run's rows, those to select by included."""
        return self.train_rows + self.selection_rows

    @property
    def dev_split(self) -> str:
        """Name of the first dev split."""
        return next(name for name in self.scores if name != "selection")

    @property
    def dev_score(self) -> float:
        """Primary metric on the first dev split."""
        return self.scores[self.dev_split].values[self.metric]


class Run(_Stored):
    """One line: a run with either its outcome or the message of the error that ended it."""

    key: str  # digest of the options; runs with equal keys are the same run
    part: str  # the part of the study that asked for the run first
    options: dict[str, Any]  # of `training.fit`, as the study states them
    command: str
    error: str | None = None
    outcome: RunOutcome | None = None

    @model_validator(mode="after")
    def _ended_one_way(self) -> Run:
        if (self.error is None) == (self.outcome is None):
            raise ValueError("a run has either an outcome or an error")
        return self

    @property
    def diverged(self) -> bool:
        """True if its options made the run fail; other errors (no memory) may not recur."""
        return self.error is not None and self.error.startswith(_DIVERGED)


def run_key(options: Mapping[str, Any]) -> str:
    """Return the digest of the options that identify a run.

    Only stated options count: an option that a later version adds changes no key. Nor does stating
    the value that it had before there was a choice.
    """
    stated = {
        name: value
        for name, value in options.items()
        if name not in _NOT_PART_OF_A_RUN and _FORMER.get(name) != value
    }
    text = json.dumps(stated, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_runs(path: Path) -> dict[str, Run]:
    """Read the runs of a file by key, in the order of their first lines; none without a file.

    A last line without a line end was cut off while it was written; it is ignored.

    Raises:
        DataError: a line is not a run; says which line and why. Or the path is no file: reading
            a pipe or a device would not end.
    """
    if not path.exists():
        return {}
    if not path.is_file():
        raise DataError("not a file; name a file of results, or one to make", path=path)
    runs: dict[str, Run] = {}
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            run = Run.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise DataError(
                f"not the result of a run ({where}: {first['msg']}); restore or delete the line",
                path=path,
                row=number,
            ) from error
        runs[run.key] = run
    return runs


def append_run(path: Path, run: Run) -> None:
    """Append one line, whole or not at all, and wait until it is on disk.

    The rest of a line that was cut off is removed first. One writer at a time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = run.model_dump_json(exclude_none=True).encode() + b"\n"
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
