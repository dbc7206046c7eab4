"""Answers `/invocations` of MLflow's scoring server: a data frame, or rows as MLflow names them.

The task is named in the query (`?task=sst2&strategy=layernorm`); without it, it is the only one
that the key may use. Columns have the names of the task's fields, or `text` and `text_pair`;
columns without names, which pandas numbers from 0, are the fields in their order. Tested by
tests/unit/app/http/routes/clients/test_mlflow.py and tests/http/test_clients_mlflow.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.http.context import ServingDep
from app.http.json_route import JsonRoute, StickyKey, TimeoutMs
from app.http.openapi import documented
from app.http.routes.clients.answers import (
    LabelScore,
    answer_json,
    answer_one,
    model_of,
    refuse,
    spec_of,
)
from app.http.routes.clients.error_forms import error_form_of
from app.http.schemas import Inputs, RequestBody
from app.pipeline.predictions import LabelPrediction, LabelsPrediction, Prediction
from deltas import TaskSpec

_LONGEST_NAME = 256

invocations = APIRouter(
    tags=["clients"],
    route_class=JsonRoute,
    responses=documented(
        400, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504, form=error_form_of("/invocations")
    ),
)


class SplitFrame(RequestBody):
    """A data frame as `DataFrame.to_dict(orient="split")` makes it."""

    columns: Annotated[list[str | int], Field(min_length=1, max_length=16)]
    data: Annotated[
        list[list[Any]],
        # Many wrong rows, each with an error of its own, would hold up the event loop.
        Field(fail_fast=True, description="A list for each row, a value each column."),
    ]
    index: Annotated[
        list[Any] | None, Field(description="Names of the rows; the answer has their order.")
    ] = None


class NoParameters(RequestBody):
    """The parameters of a request, of which there are none."""


class InvocationsRequest(RequestBody):
    """Rows in exactly one of four fields."""

    dataframe_split: SplitFrame | None = None
    dataframe_records: Annotated[list[dict[str, Any]] | None, Field(fail_fast=True)] = None
    inputs: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {}},
                    {"type": "object", "description": "A text or a list of texts by column."},
                ]
            }
        ),
    ] = None
    instances: Inputs | None = None
    params: NoParameters | None = None


class LabelsOfRow(BaseModel):
    """The labels that a row of a multi-label task has, and the score of each label."""

    model_config = ConfigDict(frozen=True)

    labels: list[str]
    scores: dict[str, float]


class InvocationsResponse(BaseModel):
    """The answer to each row: a label with its score, labels with scores, or a value."""

    model_config = ConfigDict(frozen=True)

    predictions: list[LabelScore | LabelsOfRow | float]


@invocations.post(
    "/invocations",
    summary="Classify for clients of MLflow",
    response_model=InvocationsResponse,
)
async def invoke(
    request: Request,
    body: InvocationsRequest,
    serving: ServingDep,
    task: Annotated[
        str | None,
        Query(description="The task; unset: the key's only one.", max_length=_LONGEST_NAME),
    ] = None,
    strategy: Annotated[
        str | None,
        Query(description="Unset: the default strategy.", max_length=_LONGEST_NAME),
    ] = None,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Return the answer to each row of a data frame or a list."""
    _check_query(request)
    named = request.query_params.get("task")  # this class of routes reads no query
    chosen, _ = model_of(request, serving, None) if named is None else (named, None)
    # The fields of all strategies of a task are the same for every client.
    rows = rows_of(spec_of(request, serving, chosen), body)
    strategy = request.query_params.get("strategy")
    answer = await answer_one(request, serving, rows, chosen, strategy)
    return answer_json({"predictions": [_plain(each) for each in answer.part.predictions]})


def _check_query(request: Request) -> None:
    """Refuse parameters longer than a name can be; `app.http.query` has refused unknown ones."""
    for name, value in request.query_params.items():
        if len(value) > _LONGEST_NAME:
            refuse(name, f"has {len(value):,} characters; a name has at most {_LONGEST_NAME}")


def rows_of(task: TaskSpec, body: InvocationsRequest) -> Any:
    """Return the rows of a request in our form.

    Raises:
        InvalidInputError: not exactly one field has rows, or they do not fit together.
    """
    fields = "dataframe_split", "dataframe_records", "inputs", "instances"
    given = [name for name in fields if getattr(body, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        refuse(None, f"must have exactly one of {', '.join(fields)}, and has {found}")
    (name,) = given
    if body.dataframe_split is not None:
        return _rows_of_split(task, body.dataframe_split)
    value = getattr(body, name)
    if isinstance(value, dict) and any(isinstance(column, list) for column in value.values()):
        return _rows_of_columns(name, value)
    if isinstance(value, list):
        return [_rows_by_position(task, row) if isinstance(row, list) else row for row in value]
    return value


def _rows_of_split(task: TaskSpec, frame: SplitFrame) -> list[Any]:
    columns = frame.columns
    if len(set(columns)) != len(columns):
        refuse("dataframe_split.columns", "has a name twice")
    if frame.index is not None and len(frame.index) != len(frame.data):
        found = f"has {len(frame.index):,} names for {len(frame.data):,} rows"
        refuse("dataframe_split.index", found)
    for position, row in enumerate(frame.data):
        if len(row) != len(columns):
            found = f"has {len(row)} values for {len(columns)} columns"
            refuse("dataframe_split.data", found, position)
    if columns == list(range(len(columns))):
        return [_rows_by_position(task, row) for row in frame.data]
    return [dict(zip(map(str, columns), row, strict=True)) for row in frame.data]


def _rows_of_columns(field: str, columns: dict[str, Any]) -> list[Any]:
    lengths = {name: len(each) for name, each in columns.items() if isinstance(each, list)}
    if len(lengths) != len(columns) or len(set(lengths.values())) != 1:
        refuse(field, "must have a list of equal length for each column")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _rows_by_position(task: TaskSpec, values: Sequence[Any]) -> Any:
    """Return a row whose values stand in the order of the fields; a wrong number is told later."""
    if len(values) != len(task.text_fields):
        fields = " and ".join(map(repr, task.text_fields))
        refuse(None, f"has rows of {len(values)} values, but {task.name!r} takes {fields}")
    return dict(zip(task.text_fields, values, strict=True))


def _plain(prediction: Prediction) -> Any:
    if isinstance(prediction, LabelPrediction):
        return {"label": prediction.label, "score": prediction.score}
    if isinstance(prediction, LabelsPrediction):
        return {"labels": prediction.labels, "scores": prediction.scores}
    return prediction.value
