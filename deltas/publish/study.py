"""The study's rows: what repeated runs of a strategy gave on a task, shipped beside the zoo.

`training.report` writes them from the runs' results, the server's `/benchmark` serves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deltas.errors import DeltaFormatError
from deltas.format import write_atomically
from deltas.store import zoo_path

_FILE = "study.json"


class StudyRow(BaseModel):
    """One strategy on one task at one train size: the mean over seeds, and what it costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    part: Annotated[str, Field(description="The part of the study.")]
    task: str
    strategy: str
    backbone: str
    metric: Annotated[str, Field(description="The task's primary metric.")]
    mean: Annotated[float, Field(description="Over the seeds, on the dev split.")]
    spread: Annotated[
        float | None, Field(description="Standard deviation over the seeds; null for one seed.")
    ]
    seeds: int
    split: str
    split_rows: int
    split_note: str
    train_rows: int
    selection_rows: int
    train_note: str
    learning_rate: Annotated[float, Field(description="Chosen on the selection rows.")]
    epochs: float
    trainable_parameters: int
    trained_share: Annotated[float, Field(description="Trainable over total parameters.")]
    size_bytes: Annotated[int, Field(description="The delta's file.")]
    machine: Annotated[str, Field(description="The processor that times and memory are of.")]
    seconds: Annotated[float | None, Field(description="Training time of the fastest run.")]
    cpu_seconds: Annotated[
        float | None, Field(description="Of the process; null where it was not measured.")
    ]
    peak_bytes: Annotated[int, Field(description="Most memory of the process; median of the runs.")]
    command: Annotated[str, Field(description="Repeats the run of the first seed.")]


_ROWS = TypeAdapter(list[StudyRow])


def study_path() -> Path:
    """Where the rows are shipped."""
    return zoo_path() / _FILE


def write_study(path: Path, rows: list[StudyRow]) -> None:
    """Write rows, whole or not at all."""
    write_atomically(path, _ROWS.dump_json(rows, indent=1) + b"\n")


def read_study(path: Path) -> list[StudyRow]:
    """Rows as they were written; none where there is no file.

    Raises:
        DeltaFormatError: the file is not what `write_study` writes.
    """
    if not path.is_file():
        return []
    try:
        return _ROWS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise DeltaFormatError(path, f"no rows of a study ({error.errors()[0]['msg']})") from error
