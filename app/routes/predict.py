"""Predictions: one task, or several in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response

from app.admission import arrival_of, deadline_of
from app.disconnect import while_connected
from app.errors import BadResultError, DeadlineExceededError, DeltaUnavailableError
from app.limits import JsonRoute
from app.pipeline import RowLogits
from app.predictions import to_predictions
from app.routes.responses import documented
from app.schemas import (
    FanOutRequest,
    FanOutResponse,
    PredictRequest,
    PredictResponse,
    TargetPredictions,
)
from app.serving import Serving, ServingDep
from deltas import Record

router = APIRouter(
    tags=["predictions"],
    route_class=JsonRoute,
    responses=documented(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)

TaskName = Annotated[str, Path(description="A task of GET /tasks.", max_length=256)]
TimeoutMs = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        description="Answer 504 after this many milliseconds; the server's own limit stays.",
        ge=1,
    ),
]


@router.post("/predict/{task}", summary="Predict with one task", response_model=PredictResponse)
async def predict(
    request: Request,
    task: TaskName,
    body: PredictRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
) -> Response:
    """Classify one row, or a list of rows, with a task's default delta or with the one named.

    A row is a string (tasks with one text) or an object with the task's fields; `text` and
    `text_pair` are accepted for any task. Predictions come in the order of the rows.
    """
    record = serving.engine.store.resolve(task, body.strategy, body.version)
    work = _answer(serving, request, body, [record], task)
    (answer,) = await while_connected(request, work)
    backbone = serving.engine.backbone.ref.id
    return _json(PredictResponse(backbone=backbone, **dict(answer)))


@router.post(
    "/predict",
    summary="Predict with several tasks or strategies at once",
    response_model=FanOutResponse,
)
async def predict_fan_out(
    request: Request, body: FanOutRequest, serving: ServingDep, timeout_ms: TimeoutMs = None
) -> Response:
    """Send the same rows through several deltas; the backbone's work is batched across them.

    The rows must fit every target: a string for tasks with one text, or `text` and `text_pair`,
    which every task with two texts understands. Results come in the order of the targets.
    """
    resolve = serving.engine.store.resolve
    records = [resolve(target.task, target.strategy, target.version) for target in body.targets]
    work = _answer(serving, request, body, records, None)
    results = await while_connected(request, work)
    return _json(FanOutResponse(backbone=serving.engine.backbone.ref.id, results=results))


def _json(answer: PredictResponse | FanOutResponse) -> Response:
    """Written by the model itself: FastAPI would check once more what was just checked."""
    return Response(answer.model_dump_json(), media_type="application/json")


async def _answer(
    serving: Serving,
    request: Request,
    body: PredictRequest | FanOutRequest,
    records: Sequence[Record],
    key: str | None,
) -> list[TargetPredictions]:
    """Run the rows; `key` is the task in whose turns they run, None for those of several."""
    deadline = deadline_of(request.scope, serving)
    try:
        results = await serving.pipeline.run(
            body.inputs, records, key=key, deadline=deadline, trace=request.state.trace
        )
        answers = [
            _target(record, rows, body.top_k) for record, rows in zip(records, results, strict=True)
        ]
    except DeadlineExceededError:
        raise DeadlineExceededError(deadline - arrival_of(request.scope)) from None
    except (BadResultError, DeltaUnavailableError):
        serving.metrics.on_drop("failed")  # which the batcher took for results
        raise
    for answer in answers:
        serving.metrics.on_rows(answer.task, answer.strategy, len(answer.predictions))
    return answers


def _target(record: Record, rows: Sequence[RowLogits], top_k: int | None) -> TargetPredictions:
    task, strategy = record.manifest.key
    return TargetPredictions(
        task=task,
        strategy=strategy,
        version=record.version,
        kind=record.manifest.task.kind,
        predictions=to_predictions(record.manifest.task, rows, top_k),
    )
