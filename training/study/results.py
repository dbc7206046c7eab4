"""One JSON line for each run of a sweep: what was asked for, what came out, what it cost.

`training.sweep` appends lines, `training.report` reads them and nothing else. The last line of a
key counts, so that a repeated run replaces a failed one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deltas.manifest import SplitMetrics
from training.errors import DataError

# Where and how a run is carried out; none of it changes what a run is.
_NOT_PART_OF_A_RUN = {"data", "device", "out", "overwrite", "resume", "json", "json_"}
_KEY_LENGTH = 12
_DIVERGED = "training diverged"  # how `training.run.loop` begins such an error


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Part):
    """What a run was carried out on; times compare only within one machine."""

    cpu: str
    cores: int
    threads: Annotated[int, Field(description="torch threads of the run")]
    workers: Annotated[int, Field(description="runs at a time")]
    system: str


class History(_Part):
    """One number for each evaluation of a run, in the order of `step`.

    Attributes:
        step: steps done.
        train_loss: mean loss of the steps since the last evaluation.
        loss: on the selection rows.
        metric: the primary metric, on the selection rows.
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


class RunOutcome(_Part):
    """What a finished run gave and what it cost.

    Attributes:
        strategy: as served, with its re-initialisation: "initbias+bitfit".
        metric: the task's primary metric.
        scores: metrics by split: "selection" and the dev splits.
        seconds: of training, the evaluations included; `resumed` runs count from where they went
            on.
        cpu_seconds: of the run's process, its start and all its threads included; unlike `seconds`
            hardly longer when the machine does other work too. None in lines of earlier versions.
        peak_bytes: most memory that the run's process held.
        trained: trained parameters, the head included.
        total: parameters of backbone and head.
        delta_bytes: the delta's file.
    """

    task: str
    strategy: str
    metric: str
    scores: dict[str, SplitMetrics]
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
    peak_bytes: int
    trained: int
    total: int
    delta_bytes: int
    backbone: str
    fingerprint: str
    machine: Machine
    versions: dict[str, str]
    git_commit: str | None = None

    @property
    def selection_score(self) -> tuple[float, float]:
        """How good the run is on its selection rows, higher is better: metric, then minus loss."""
        values = self.scores["selection"].values
        return values[self.metric], -values.get("loss", 0.0)

    @property
    def dev_score(self) -> float:
        """The primary metric on the first dev split."""
        split = next(name for name in self.scores if name != "selection")
        return self.scores[split].values[self.metric]


class Run(_Part):
    """One line: either an outcome or the error that the run ended with.

    Attributes:
        key: digest of the options; equal keys are the same run.
        part: the part of the study that asked for it first.
        options: of `training.fit`, as the study states them.
        command: repeats the run.
    """

    key: str
    part: str
    options: dict[str, Any]
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
        """Whether its options made it fail; other errors (killed, no memory) may not come again."""
        return self.error is not None and self.error.startswith(_DIVERGED)


def run_key(options: Mapping[str, Any]) -> str:
    """Digest of the options that make a run what it is.

    Only what is stated counts: an option that a later version adds changes no key.
    """
    stated = {name: value for name, value in options.items() if name not in _NOT_PART_OF_A_RUN}
    text = json.dumps(stated, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def read_runs(path: Path) -> dict[str, Run]:
    """The runs of a file by key, in the order of their first lines; none if there is no file.

    A last line without its end is what a write that was cut off left; it is passed over.

    Raises:
        DataError: a line that is no run; says which and why.
    """
    if not path.exists():
        return {}
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
    """Add one line, whole or not at all, and wait until it is on disk.

    What an earlier, cut off write left of a line is removed first. One writer at a time.
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
