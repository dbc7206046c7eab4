"""Defines the bodies of requests and responses, as promised in `/docs`.

Rows are only outlined here, because their form depends on the task. `app.pipeline` checks them and
names each wrong row and field.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.errors import UNKNOWN_FIELD
from app.pipeline.predictions import Prediction, TargetPredictions
from deltas.errors import did_you_mean
from deltas.manifest import Calibration, DecisionRule, Reliability, TaskAbout, TaskKind
from deltas.publish.measured import Measured
from deltas.publish.study import StudyRow

MAX_LISTED_DELTAS = 1000  # in one answer
_MAX_TARGETS = 256  # of a fan-out

Name = Annotated[str, Field(min_length=1, max_length=256)]

ROW_SCHEMA = {
    "anyOf": [
        {"type": "string", "description": "The text, for tasks that take one."},
        {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The task's text fields by name, or `text` and `text_pair`.",
        },
    ]
}
Inputs: TypeAlias = Annotated[
    Any,
    WithJsonSchema({"anyOf": [*ROW_SCHEMA["anyOf"], {"type": "array", "items": ROW_SCHEMA}]}),
    Field(description="One row, or a list of rows."),
]
TopK: TypeAlias = Annotated[
    int | None,
    Field(
        ge=1,
        strict=True,
        description="Number of scores to give, best label first; unset gives all of them in "
        "the order of the labels.",
    ),
]
Strategy: TypeAlias = Annotated[
    Name | None, Field(description="Strategy of the delta; unset takes the task's default.")
]
Version: TypeAlias = Annotated[
    Name | None, Field(description="Version of the delta; unset takes the default version.")
]


class RequestBody(BaseModel):
    """A body, or the parameters of a query, that has no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, data: Any) -> Any:
        """Refuse unknown fields, with a suggestion for each."""
        for name in data if isinstance(data, dict) else ():
            if name not in cls.model_fields:
                known = list(cls.model_fields)
                shown = name[:64].encode(errors="replace").decode()  # half a surrogate pair: "?"
                hint = did_you_mean(shown, known)
                raise PydanticCustomError(
                    UNKNOWN_FIELD,
                    "is not a field of this request.{hint} Allowed: {allowed}",
                    {"field": shown, "hint": hint, "allowed": ", ".join(known) or "none"},
                )
        return data


class PredictRequest(RequestBody):
    """Rows for one task."""

    inputs: Inputs
    strategy: Strategy = None
    version: Version = None
    top_k: TopK = None


class Target(RequestBody):
    """One delta of a fan-out."""

    task: Name
    strategy: Strategy = None
    version: Version = None

    @model_validator(mode="before")
    @classmethod
    def _no_bare_name(cls, data: Any) -> Any:
        """Refuse a task's name by itself, and show the object that is meant."""
        if isinstance(data, str):
            meant = {"meant": json.dumps({"task": data[:64]})}
            raise PydanticCustomError("bare_name", "must be an object like {meant}", meant)
        return data


def _listed(value: Any) -> Any:
    """Refuse one target that is not in a list; and too many, before each of them is checked."""
    if isinstance(value, list) and len(value) > _MAX_TARGETS:
        raise PydanticCustomError("too_many", "are {found}; at most 256", {"found": len(value)})
    if isinstance(value, str | dict):
        one = {"task": value[:64]} if isinstance(value, str) else {"task": "sst2"}
        meant = {"meant": json.dumps([one])}
        raise PydanticCustomError("not_listed", "must be a list like {meant}", meant)
    return value


class FanOutRequest(RequestBody):
    """The same rows for several deltas."""

    inputs: Inputs
    targets: Annotated[
        list[Target],
        BeforeValidator(_listed),
        Field(
            min_length=1, max_length=256, description="Deltas to ask; results come in this order."
        ),
    ]
    top_k: TopK = None


class RollbackRequest(RequestBody):
    """The version that shall be the default again."""

    version: Annotated[
        Name | None,
        Field(description="A kept version; unset takes the last one before the default."),
    ] = None


class TaskQuery(RequestBody):
    """The part of the tasks, or of their benchmark, to list; unset lists all in one answer."""

    limit: Annotated[
        int | None,
        Field(ge=1, le=MAX_LISTED_DELTAS, description="Maximum number of entries in the answer."),
    ] = None
    offset: Annotated[int, Field(ge=0, le=2**31, description="Number of entries to skip.")] = 0
    q: Annotated[
        Name | None, Field(description="Text in the task's name; capitals do not matter.")
    ] = None


class StreamQuery(RequestBody):
    """The choices for a stream of rows, which has no body to hold them."""

    strategy: Strategy = None
    version: Version = None
    top_k: Annotated[
        int | None, Field(ge=1, description="Number of scores to give; unset gives none.")
    ] = None
    keep: Annotated[
        str, Field(description="Columns for the output, with commas; `*` for all; unset: `id`.")
    ] = ""
    text_columns: Annotated[
        str, Field(description="Columns with the texts, with commas; unset: the task's fields.")
    ] = ""


class DeltaQuery(RequestBody):
    """The part of the deltas to list: filters, and a page of what passes them."""

    limit: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_LISTED_DELTAS,
            description="Maximum number of deltas and files in the answer.",
        ),
    ] = MAX_LISTED_DELTAS
    offset: Annotated[
        int, Field(ge=0, le=2**31, description="Number of deltas and files to skip.")
    ] = 0
    task: Annotated[Name | None, Field(description="List served deltas of this task.")] = None
    strategy: Annotated[Name | None, Field(description="List served deltas of this strategy.")] = (
        None
    )
    status: Annotated[
        Literal["served", "loaded", "refused"] | None,
        Field(
            description="`served`: deltas; `loaded`: those of them that are in memory; `refused`: "
            "files. Unset lists deltas, then refused files."
        ),
    ] = None
    q: Annotated[
        Name | None,
        Field(
            description="Text that the name `task/strategy@version`, or the refused file's name, "
            "contains; capitals do not matter."
        ),
    ] = None

    @property
    def has_filters(self) -> bool:
        """True if not all deltas and files are asked for."""
        return any(value is not None for value in (self.task, self.strategy, self.status, self.q))


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True)


Total = Annotated[int, Field(description="Number of all entries that pass the filters.")]
Next = Annotated[
    str | None, Field(description="Path and query of the next page; null on the last one.")
]


class PredictResponse(_Response):
    """Answers of one delta, in the order of the rows."""

    task: str
    strategy: str
    version: str
    backbone: Annotated[str, Field(description="Id of the backbone.")]
    kind: TaskKind
    predictions: list[Prediction]


class FanOutResponse(_Response):
    """Answers of several deltas, in the order of the targets."""

    backbone: Annotated[str, Field(description="Id of the backbone.")]
    results: list[TargetPredictions]


CalibrationField: TypeAlias = Annotated[
    Calibration | None, Field(description="Already part of the head; null if not calibrated.")
]
DecisionField: TypeAlias = Annotated[
    DecisionRule | None, Field(description="Thresholds or limit; null for the usual ones.")
]


class TaskDelta(_Response):
    """One delta of a task, and how its scores become decisions."""

    strategy: str
    version: str
    is_default: Annotated[bool, Field(description="True if it answers when no version is named.")]
    calibration: CalibrationField = None
    decision: DecisionField = None


class TaskInfo(_Response):
    """One task that is served."""

    task: str
    kind: TaskKind
    labels: Annotated[
        list[str], Field(description="In the order of the head; empty for regression.")
    ]
    text_fields: Annotated[
        list[str], Field(description="Names of the fields of a row, one or two.")
    ]
    max_length: Annotated[int, Field(description="Maximum tokens of a row; longer rows are cut.")]
    strategies: list[str]
    default_strategy: str
    deltas: Annotated[
        list[TaskDelta], Field(description="All deltas of the task, sorted by strategy.")
    ]
    about: Annotated[
        TaskAbout | None, Field(description="Words of the task's author; null without any.")
    ] = None
    changed_at: Annotated[
        float | None,
        Field(description="Time of the newest of its files, in seconds since 1970; null if gone."),
    ] = None


class TaskList(_Response):
    """All tasks that are served."""

    tasks: list[TaskInfo]
    total: Total = 0
    next: Next = None


class SplitResult(_Response):
    """Metrics on one split of the data."""

    rows: int
    values: dict[str, float]
    note: str
    reliability: Annotated[
        Reliability | None, Field(description="Probabilities against shares; null if unknown.")
    ] = None


class DeltaInfo(_Response):
    """One delta that is served."""

    task: str
    strategy: str
    version: str
    is_default: Annotated[bool, Field(description="True if it answers when no version is named.")]
    kind: TaskKind
    labels: list[str]
    size_bytes: int
    trainable_parameters: int
    total_parameters: int
    calibration: CalibrationField = None
    decision: DecisionField = None
    trained_on: Annotated[str, Field(description="Source of the training rows.")]
    metrics: dict[str, SplitResult]
    loaded: Annotated[bool, Field(description="True if it is in memory, ready for the next batch.")]


class RejectedFile(_Response):
    """A file that is not served, with the reason."""

    file: str
    reason: str


class DeltaList(_Response):
    """Deltas that are served, and files that could not be."""

    deltas: list[DeltaInfo]
    rejected: list[RejectedFile]
    total: Total
    next: Next


class DeltaDetails(_Response):
    """One delta with its manifest."""

    version: str
    size_bytes: int
    is_default: bool
    manifest: dict[str, Any]


class ChangedDelta(_Response):
    """The versions of a delta after a change."""

    task: str
    strategy: str
    version: Annotated[
        str | None, Field(description="The version that answers by default; null if there is none.")
    ]
    previous: Annotated[
        str | None, Field(description="The version that answered by default before the change.")
    ]
    versions: Annotated[list[str], Field(description="All versions served, the default first.")]


class ReloadedDeltas(_Response):
    """The result of reading the folders again."""

    num_changed: Annotated[int, Field(description="Deltas whose files differ.")]
    changed: Annotated[list[str], Field(description="The first of them, as task/strategy.")]
    num_deltas: int
    num_rejected: Annotated[int, Field(description="Files that are not served.")]
    num_rejected_rules: Annotated[
        int,
        Field(description="Rules of traffic that can't be read; the previous ones stay in use."),
    ]


class BackboneInfo(_Response):
    """The frozen encoder that all tasks share."""

    id: str
    fingerprint: str
    parameters: int
    size_bytes: int


class BenchmarkRow(_Response):
    """Cost and quality of one delta, from its manifest."""

    task: str
    strategy: str
    version: str
    metric: Annotated[str, Field(description="The task's primary metric.")]
    value: float
    split: Annotated[str, Field(description="The split that `value` was measured on.")]
    split_rows: int
    split_note: str
    metrics: dict[str, SplitResult]
    size_bytes: int
    trainable_parameters: int
    trained_share: Annotated[float, Field(description="Trainable over total parameters.")]
    train_rows: int
    train_note: str
    learning_rate: float
    epochs: float
    seed: int
    data: str


class Benchmark(_Response):
    """The benchmark table."""

    backbone: BackboneInfo
    rows: list[BenchmarkRow]
    study: Annotated[
        list[StudyRow],
        Field(description="Study of this backbone: means and spreads over seeds; not paged."),
    ]
    measured: Annotated[
        Measured, Field(description="Other methods on this backbone, and an earlier study.")
    ]
    total: Total = 0
    next: Next = None


class Alive(_Response):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(_Response):
    """A prediction was made a moment ago."""

    status: Literal["ready"] = "ready"
    latency_ms: Annotated[float, Field(description="Milliseconds that the prediction took.")]


class ErrorContent(_Response):
    """The content of an error."""

    code: Annotated[str, Field(description="Stable identifier for programs.")]
    message: Annotated[str, Field(description="A sentence for people.")]
    details: Annotated[
        Any,
        Field(
            description="422: a list of {row, field, problem}; 404: {suggestions, available}; "
            "413: {found, allowed}; else null."
        ),
    ] = None
    request_id: Annotated[str, Field(description="Also in the header X-Request-ID and in the log.")]


class ErrorBody(_Response):
    """The shape of every error."""

    error: ErrorContent
