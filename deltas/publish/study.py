"""Read and write the study's rows: each strategy's mean score on each task, beside the zoo.

`training.report` computes the rows from the results of runs; the server's `/benchmark` serves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from deltas.errors import DeltaFormatError
from deltas.format import write_atomically
from deltas.store.store import zoo_path


class StudyRow(BaseModel):
    """One strategy on one task at one train size: mean score over seeds, and cost."""

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
    machine: Annotated[
        str, Field(description="The processor on which times and memory were measured.")
    ]
    seconds: Annotated[float | None, Field(description="Training time of the fastest run.")]
    cpu_seconds: Annotated[
        float | None, Field(description="Of the process; null where it was not measured.")
    ]
    peak_bytes: Annotated[int, Field(description="Peak memory of the process; median of the runs.")]
    command: Annotated[str, Field(description="Repeats the run of the first seed.")]


_ROWS = TypeAdapter(list[StudyRow])


def study_path() -> Path:
    """Return the path of the shipped rows."""
    return zoo_path() / "study.json"


def write_study(path: Path, rows: list[StudyRow]) -> None:
    """Write all rows in one step."""
    write_atomically(path, _ROWS.dump_json(rows, indent=1) + b"\n")


def read_study(path: Path) -> list[StudyRow]:
    """Read the rows; return an empty list if there is no file.

    Raises:
        DeltaFormatError: the file is not what `write_study` writes.
    """
    if not path.is_file():
        return []
    try:
        return _ROWS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise DeltaFormatError(path, f"not a study file ({error.errors()[0]['msg']})") from error
