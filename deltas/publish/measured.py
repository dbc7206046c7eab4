"""Reads the measured numbers that stand beside the study: other methods, and an earlier study.

`make docs` writes the file from `docs/performance/quality.jsonl` and
`docs/results/earlier_study.csv`; the server's `/benchmark` serves it. So an installed package shows
the same numbers as the repository, each with its source. Tested by
tests/unit/deltas/publish/test_measured.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deltas.errors import DeltaFormatError
from deltas.store.store import zoo_path


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class QualityRow(_Row):
    """One method on one set, of `make bench-quality`: mean score over seeds, and cost."""

    task: Annotated[str, Field(description="The set.")]
    method: Annotated[
        str, Field(description="A strategy, `majority`, `sklearn`, `sklearn:apart`, `cosine`, ...")
    ]
    metric: str
    mean: Annotated[float, Field(description="Over the seeds, on the dev split.")]
    spread: Annotated[
        float | None, Field(description="Standard deviation over the seeds; null for one seed.")
    ]
    seeds: int
    split: str
    split_rows: int
    train_rows: int
    train_note: str
    trainable_parameters: Annotated[
        int | None, Field(description="Null for methods without a delta.")
    ]
    size_bytes: Annotated[int | None, Field(description="The delta's file; null without one.")]
    machine: str
    seconds: Annotated[float, Field(description="Training and scoring; median of the seeds.")]
    cpu_seconds: Annotated[float, Field(description="Of the process; median of the seeds.")]
    command: Annotated[str, Field(description="Repeats the run of the first seed.")]


class EarlierRow(_Row):
    """One number of the study that this project comes from, on another backbone."""

    part: str
    task: str
    strategy: str
    learning_rate: float
    train_rows: Annotated[int | None, Field(description="Null for all train rows.")]
    mean: float
    spread: float


class CurveRow(_Row):
    """The metric on the selection rows by step: median, lowest and highest of a study's seeds."""

    task: str
    strategy: str
    metric: str
    seeds: int
    learning_rate: float
    step: list[int]
    median: list[float]
    low: list[float]
    high: list[float]


class Measured(_Row):
    """The measured numbers beside the study, with the files that they come from."""

    backbone: Annotated[str, Field(description="The backbone of our own numbers.")] = ""
    quality: list[QualityRow] = []
    quality_source: str = ""
    earlier: list[EarlierRow] = []
    earlier_source: str = ""
    curves: list[CurveRow] = []
    curves_source: str = ""


def measured_path() -> Path:
    """Return the path of the shipped numbers."""
    return zoo_path() / "measured.json"


def read_measured(path: Path) -> Measured:
    """Read the numbers; return none if there is no file.

    Raises:
        DeltaFormatError: the file is not what `make docs` writes.
    """
    if not path.is_file():
        return Measured()
    try:
        return Measured.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DeltaFormatError(
            path, f"not a file of measured numbers ({error.errors()[0]['msg']})"
        ) from error
