"""Answers `/predict`, `/info` and `/health` of text-embeddings-inference (TEI), below a task.

In TEI `["a", "b"]` is one pair of texts, and `[["a"], ["b"]]` a batch. Objects with the names of
the fields are ours alone. Text is cut as by `/predict/{task}` unless `truncate` is false; then a
row that is too long is refused. Tested by tests/http/test_clients_tei.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from app.errors import TooLargeError
from app.http.context import ServingDep
from app.http.json_route import JsonRoute, StickyKey, TaskName, TimeoutMs
from app.http.openapi import documented
from app.http.query import QueryRoute
from app.http.routes.catalogue import Name
from app.http.routes.clients.answers import (
    LabelScore,
    answer_json,
    answer_one,
    best_first,
    labels_of,
    refuse,
    spec_of,
)
from app.http.routes.clients.error_forms import error_form_of
from app.http.schemas import RequestBody
from deltas import TaskSpec

_FORM = error_form_of("/tei")
tei_predictions = APIRouter(
    tags=["clients"],
    route_class=JsonRoute,
    responses=documented(400, 404, 408, 413, 415, 422, 429, 500, 503, 504, form=_FORM),
)
tei_facts = APIRouter(
    tags=["clients"], route_class=QueryRoute, responses=documented(404, 422, 500, 503, form=_FORM)
)

_CUT = "Send a shorter text, or leave out `truncate`, which cuts the text there"

_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
_FIELDS = {"type": "object", "additionalProperties": {"type": "string"}}
TeiInputs = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _TEXTS,
                _FIELDS,
                {"type": "array", "items": {"anyOf": [_TEXTS, _FIELDS]}, "minItems": 1},
            ]
        }
    ),
    Field(description="A text, a pair as a list of two texts, or a batch as a list of lists."),
]


class TeiRequest(RequestBody):
    """Texts to classify."""

    inputs: TeiInputs
    truncate: Annotated[
        bool | None,
        Field(strict=True, description="False refuses a row that is too long; else it is cut."),
    ] = None
    truncation_direction: Annotated[
        Literal["Right"] | None,
        BeforeValidator(lambda value: "Right" if value == "right" else value),
        Field(description="Text is cut at its end."),
    ] = None
    raw_scores: Annotated[
        bool | None, Field(strict=True, description="True gives the head's outputs as they are.")
    ] = None


@tei_predictions.post(
    "/tei/{task}/predict",
    summary="Classify for clients of text-embeddings-inference",
    response_model=list[LabelScore] | list[list[LabelScore]],
)
async def predict_for_tei(
    request: Request,
    task: TaskName,
    body: TeiRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Return the labels of a text, a pair, or each row of a batch, best first."""
    spec = spec_of(request, serving, task)
    rows, is_batch = read_rows(spec, body.inputs)
    answer = await answer_one(request, serving, rows, task)
    spec = answer.record.manifest.task
    if body.truncate is False:
        for position, row in enumerate(answer.rows):
            if row.truncated:
                what = f"tokens in row {position}"
                raise TooLargeError(what, None, spec.max_length, remedy=_CUT)
    function: Literal["none"] | None = "none" if body.raw_scores else None
    scores = [best_first(spec, row.logits, function) for row in answer.rows]
    return answer_json(scores if is_batch else scores[0])


def read_rows(task: TaskSpec, inputs: Any) -> tuple[list[Any], bool]:
    """Return the rows of TEI's `inputs` in our form, and whether they are a batch.

    Raises:
        InvalidInputError: the inputs are neither a text, nor a pair, nor a batch of them.
    """
    if not isinstance(inputs, list):
        return [inputs], False
    if not inputs:
        refuse("inputs", "is an empty list")
    if isinstance(inputs[0], str):
        return [_row(task, inputs, None)], False
    return [_row(task, row, position) for position, row in enumerate(inputs)], True


def _row(task: TaskSpec, row: Any, position: int | None) -> Any:
    if isinstance(row, dict):
        return row
    is_texts = isinstance(row, list) and all(isinstance(text, str) for text in row)
    if not is_texts or not 1 <= len(row) <= 2:
        refuse("inputs", "must be a list of one text, or of the two texts of a pair", position)
    if len(row) != len(task.text_fields):
        fields = " and ".join(map(repr, task.text_fields))
        hint = "; a batch is a list of lists" if position is None else ""
        refuse("inputs", f"has {len(row)} texts, but {task.name!r} takes {fields}{hint}", position)
    return dict(zip(task.text_fields, row, strict=True))


class TeiClassifier(BaseModel):
    """The labels of a classifier, by their numbers as text."""

    model_config = ConfigDict(frozen=True)

    id2label: dict[str, str]
    label2id: dict[str, int]


class TeiModelType(BaseModel):
    """The kind of a model, which is always a classifier here."""

    model_config = ConfigDict(frozen=True)

    classifier: TeiClassifier


class TeiInfo(BaseModel):
    """The model and the limits of the server, as text-embeddings-inference describes them."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str
    model_sha: Annotated[str, Field(description="Version of the task's default delta.")]
    model_dtype: str
    model_type: TeiModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: Literal[True] = True
    version: str


@tei_facts.get("/tei/{task}/info", summary="Describe a task for text-embeddings-inference")
async def tei_info(request: Request, task: Name, serving: ServingDep) -> TeiInfo:
    """Return the task's labels and the server's limits."""
    record = serving.engine.store.resolve(task)
    spec, settings = record.manifest.task, request.app.state.settings
    labels = labels_of(spec)
    return TeiInfo(
        model_id=f"{serving.engine.backbone.ref.id}/{task}",
        model_sha=record.version,
        model_dtype=str(serving.engine.describe()["precision"]),
        model_type=TeiModelType(
            classifier=TeiClassifier(
                id2label={str(number): label for number, label in enumerate(labels)},
                label2id={label: number for number, label in enumerate(labels)},
            )
        ),
        max_concurrent_requests=settings.max_queue_rows,
        max_input_length=spec.max_length,
        max_batch_tokens=settings.max_queue_tokens,
        max_client_batch_size=settings.max_rows_per_request,
        version=request.app.version,
    )


@tei_facts.get("/tei/{task}/health", summary="Can the task predict?", response_class=Response)
async def tei_health(task: Name, serving: ServingDep) -> Response:
    """Make a real prediction through the batcher, at most one a second; the answer is empty."""
    serving.engine.store.resolve(task)
    await serving.readiness.check()
    return Response()
