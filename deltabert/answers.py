"""Holds the typed answers of a server.

Fields that a later server adds are left out, so that an older client keeps working. The decision
of a row is the field to act on, as docs/guide/serving.md says. Tested by
tests/unit/deltabert/test_clients.py.
"""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Kind: TypeAlias = Literal["single_label", "multi_label", "regression"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    @classmethod
    def read(cls, values: Any) -> Self:
        """Return the values of an answer as their type.

        Raises:
            ValueError: they have another form; the message names the first field.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place or 'all'}: {first['msg']}") from error


class LabelAnswer(_Answer):
    """The answer to one row of a single-label task; no decision means too little confidence."""

    label: str
    decision: str | None
    score: float
    scores: dict[str, float]
    truncated: bool


class LabelsAnswer(_Answer):
    """The answer to one row of a multi-label task."""

    labels: list[str]
    decision: list[str]
    scores: dict[str, float]
    truncated: bool


class ValueAnswer(_Answer):
    """The answer to one row of a regression task."""

    value: float
    decision: float
    truncated: bool


RowAnswer: TypeAlias = LabelAnswer | LabelsAnswer | ValueAnswer


class DeltaAnswers(_Answer):
    """The answers of one delta, in the order of the rows."""

    task: str
    strategy: str
    version: str
    kind: Kind
    rows: list[RowAnswer] = Field(alias="predictions")


class ServedTask(_Answer):
    """A task that a server answers."""

    task: str
    kind: Kind
    labels: list[str]
    text_fields: list[str]
    max_length: int
    strategies: list[str]
    default_strategy: str


class ServedDelta(_Answer):
    """A delta that a server answers by."""

    task: str
    strategy: str
    version: str
    is_default: bool
    kind: Kind
    labels: list[str]
    size_bytes: int
    trained_on: str
    loaded: bool


class Health(_Answer):
    """The state of a server: whether it can predict, in which time, and why not."""

    ready: bool
    latency_ms: float | None = None
    problem: str | None = None
