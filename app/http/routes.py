"""Predictions: one task, or several in one forward pass.

What is served: tasks, deltas with their manifests, and the benchmark table made of them.

For operators: liveness, readiness, metrics; and a first answer for those who try the address.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.errors import BadResultError, DeadlineExceededError, DeltaUnavailableError
from app.http.context import Serving, ServingDep
from app.http.json_route import JsonRoute, while_connected
from app.http.middleware import arrival_of, deadline_of
from app.http.openapi import documented
from app.http.predictions import to_predictions
from app.http.schemas import (
    Alive,
    Benchmark,
    DeltaDetails,
    DeltaList,
    FanOutRequest,
    FanOutResponse,
    PredictRequest,
    PredictResponse,
    Ready,
    TargetPredictions,
    TaskList,
)
from app.pipeline import RowLogits
from deltas import Record

predictions = APIRouter(
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


@predictions.post(
    "/predict/{task}", summary="Predict with one task", response_model=PredictResponse
)
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
    return _write(PredictResponse(backbone=backbone, **dict(answer)))


@predictions.post(
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
    return _write(FanOutResponse(backbone=serving.engine.backbone.ref.id, results=results))


def _write(answer: PredictResponse | FanOutResponse) -> Response:
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


catalogue = APIRouter(tags=["catalogue"], responses=documented(500, 503))

Name = Annotated[str, Path(max_length=256)]


@catalogue.get("/tasks", summary="List the tasks", response_model=TaskList)
async def list_tasks(serving: ServingDep) -> Response:
    """Every task with its labels, its text fields and its strategies."""
    return _json(serving.catalogue.tasks)


@catalogue.get("/deltas", summary="List the deltas", response_model=DeltaList)
async def list_deltas(serving: ServingDep) -> Response:
    """Every delta that is served, and every file that could not be, with the reason."""
    return _json(serving.catalogue.deltas)


@catalogue.get(
    "/deltas/{task}/{strategy:path}",
    summary="Describe one delta",
    responses=documented(404, 422),
)
async def describe_delta(
    task: Name,
    strategy: Name,
    serving: ServingDep,
    version: Annotated[
        str | None, Query(description="Unset: the one that answers by default.", max_length=256)
    ] = None,
) -> DeltaDetails:
    """A delta's manifest: what it is for, how it was trained, and how well it does."""
    record = serving.engine.store.resolve(task, strategy, version)
    return DeltaDetails(
        version=record.version,
        size_bytes=record.num_bytes,
        is_default=record.is_default,
        manifest=record.manifest.model_dump(mode="json"),
    )


@catalogue.get("/benchmark", summary="Compare the deltas", response_model=Benchmark)
async def benchmark(serving: ServingDep) -> Response:
    """Metric, size and trained share of every delta, and the study over several seeds."""
    return _json(serving.catalogue.benchmark)


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")


operation = APIRouter(tags=["operation"])


@operation.get("/", summary="Say what this is", response_model=dict[str, Any])
async def index(request: Request, serving: ServingDep) -> Response:
    """Name, version, tasks, and where to read on."""
    about = {
        "name": request.app.title,
        "version": request.app.version,
        "backbone": serving.engine.backbone.ref.id,
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    text = f'{json.dumps(about)[:-1]}, "tasks": {serving.catalogue.task_names}}}'
    return Response(text, media_type="application/json")


@operation.get("/health/live", summary="Is the process alive?", responses=documented(503))
async def live(serving: ServingDep) -> Alive:
    """Answers at once; 503 means that only a restart helps."""
    serving.batcher.check_alive()
    return Alive()


@operation.get("/health/ready", summary="Can it predict?", responses=documented(503))
async def ready(serving: ServingDep) -> Ready:
    """Makes a real prediction through the batcher, at most one a second."""
    return Ready(latency_ms=await serving.readiness.check())


@operation.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Prometheus' text format.",
        }
    },
)
async def metrics(serving: ServingDep) -> Response:
    """Requests, rows, batches, queue, deltas and process figures."""
    # With thousands of deltas it takes longer than a probe may wait for the event loop.
    text = await asyncio.to_thread(serving.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
