"""Every route of the server: predictions, catalogue and operation.

To follow a row, read `app.pipeline` next, which takes it from here to the batcher. Tested by all of
tests/http, first tests/http/test_predict.py and tests/http/test_catalogue.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from app.errors import BadResultError, DeadlineExceededError, DeltaUnavailableError
from app.http.context import Serving, ServingDep
from app.http.json_route import STICKY_HEADER, JsonRoute, StickyKey, TaskName, TimeoutMs
from app.http.openapi import docs_page, documented
from app.http.predictions import answer_of
from app.http.schemas import (
    Alive,
    Benchmark,
    DeltaDetails,
    DeltaList,
    DeltaQuery,
    FanOutRequest,
    FanOutResponse,
    PredictRequest,
    PredictResponse,
    Ready,
    TargetPredictions,
    TaskList,
)
from app.http.telemetry.metrics import CONTENT_TYPE
from app.keys.keyring import Caller
from deltas import Record

predictions = APIRouter(
    tags=["predictions"],
    route_class=JsonRoute,
    responses=documented(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)


@predictions.post(
    "/predict/{task}", summary="Predict with one task", response_model=PredictResponse
)
async def predict(
    request: Request,
    task: TaskName,
    body: PredictRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Classify one row, or a list of rows, with a task's default delta or with the one named.

    A row is a string (tasks with one text) or an object with the task's fields; `text` and
    `text_pair` are accepted for any task. Predictions come in the order of the rows.
    """
    (answer,) = await _answer(request, body, serving, [(task, body.strategy, body.version)], task)
    return _json(
        PredictResponse(backbone=serving.engine.backbone.ref.id, **dict(answer)).model_dump_json()
    )


@predictions.post(
    "/predict",
    summary="Predict with several tasks or strategies at once",
    response_model=FanOutResponse,
)
async def predict_fan_out(
    request: Request,
    body: FanOutRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Classify the same rows with several deltas, in one batch of the backbone.

    The rows must fit every target: a string for tasks with one text, or `text` and `text_pair`,
    which every task with two texts understands. Results come in the order of the targets.
    """
    targets = [(target.task, target.strategy, target.version) for target in body.targets]
    results = await _answer(request, body, serving, targets, None)
    return _json(
        FanOutResponse(backbone=serving.engine.backbone.ref.id, results=results).model_dump_json()
    )


async def _answer(
    request: Request,
    body: PredictRequest | FanOutRequest,
    serving: Serving,
    targets: Sequence[tuple[str, str | None, str | None]],
    key: str | None,
) -> list[TargetPredictions]:
    """Run the rows of a request.

    Args:
        request: request with its deadline and trace.
        body: the rows, and how many scores to give.
        serving: parts of the server.
        targets: task, strategy and version of each delta.
        key: lane of the queue that the rows wait in; None is the lane of all fan-outs.
    """
    caller = caller_of(request)
    if caller is not None:
        for task, _, _ in targets:
            caller.check_task(task)
    deadline: float = request.state.deadline
    predict = partial(
        serving.pipeline.predict,
        body.inputs,
        key=key,
        deadline=deadline,
        trace=request.state.trace,
        limit=caller.usage.admit if caller else nullcontext,
    )
    records = _find(request, serving, targets)
    try:
        try:
            results = await predict(records)
        except DeltaUnavailableError:
            if not await serving.changes.is_outdated(records, deadline):
                raise
            # Files were replaced behind the server's back; the new versions are served now.
            records = _find(request, serving, targets)
            results = await predict(records, limit=nullcontext)  # it is paid
        answers = [
            answer_of(record, rows, body.top_k)
            for record, rows in zip(records, results, strict=True)
        ]
    except DeadlineExceededError:
        raise DeadlineExceededError(deadline - request.state.arrived_at) from None
    except (BadResultError, DeltaUnavailableError):
        serving.metrics.on_drop("failed")  # the batcher has counted an answer
        raise
    for answer, num_tokens in zip(answers, request.state.trace.tokens, strict=True):
        num_rows = len(answer.predictions)
        serving.metrics.on_rows(answer.task, answer.strategy, num_rows, num_tokens)
    if caller is not None:
        serving.metrics.on_key_rows(caller.key.name, request.state.trace.num_rows)
    if serving.traffic.rules:
        serving.shadow.compare(
            body.inputs, [version is not None for *_, version in targets], answers
        )
    return answers


def _find(
    request: Request, serving: Serving, targets: Sequence[tuple[str, str | None, str | None]]
) -> list[Record]:
    """Return the deltas that answer, each found once, so that no answer mixes two versions."""
    store, traffic = serving.engine.store, serving.traffic
    records = [store.resolve(*target) for target in targets]
    if traffic.rules:
        named = [version is not None for *_, version in targets]
        key = request.headers.get(STICKY_HEADER, "")
        records = traffic.choose(records, named, key)
    return records


def caller_of(request: Request) -> Caller | None:
    """Return the key of a request; None if the server needs no keys."""
    caller: Caller | None = getattr(request.state, "caller", None)
    return caller


def _json(text: str) -> Response:
    """Answer with finished JSON; FastAPI would check again what the models have checked."""
    return Response(text, media_type="application/json")


catalogue = APIRouter(tags=["catalogue"], responses=documented(500, 503))

Name = Annotated[str, Path(max_length=256)]


@catalogue.get("/tasks", summary="List the tasks", response_model=TaskList)
async def list_tasks(request: Request, serving: ServingDep) -> Response:
    """List every task with its labels, text fields, strategies and rules of decision."""
    return _json((await serving.catalogue.of(caller_of(request))).tasks)


@catalogue.get(
    "/deltas", summary="List the deltas", response_model=DeltaList, responses=documented(422)
)
async def list_deltas(
    request: Request, serving: ServingDep, query: Annotated[DeltaQuery, Query()]
) -> Response:
    """List the served deltas, then the files that are refused, with the reason; by pages.

    Without filters the first page has as many as one answer may have.
    """
    seen = await serving.catalogue.of(caller_of(request))
    prefix = request.scope.get("root_path", "")
    return _json(seen.deltas.page(query, serving.engine.cache, prefix))


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
        str | None,
        Query(description="Version of the delta; unset takes the default version.", max_length=256),
    ] = None,
) -> DeltaDetails:
    """Return a delta's manifest: its task, its training and its metrics."""
    record = serving.engine.store.resolve(task, strategy, version)
    return DeltaDetails(
        version=record.version,
        size_bytes=record.num_bytes,
        is_default=record.is_default,
        manifest=record.manifest.model_dump(mode="json"),
    )


@catalogue.get("/benchmark", summary="Compare the deltas", response_model=Benchmark)
async def benchmark(request: Request, serving: ServingDep) -> Response:
    """Return metric, size and trained share of every delta, and the study over seeds."""
    return _json((await serving.catalogue.of(caller_of(request))).benchmark)


operation = APIRouter(tags=["operation"])


@operation.get("/", summary="Describe the server", response_model=dict[str, Any])
async def index(request: Request, serving: ServingDep) -> Response:
    """Return name, version, tasks and the paths of the documentation."""
    prefix = request.scope.get("root_path", "")
    about = {
        "name": request.app.title,
        "version": request.app.version,
        "backbone": serving.engine.backbone.ref.id,
        "docs": f"{prefix}/docs",
        "openapi": f"{prefix}/openapi.json",
    }
    names = (await serving.catalogue.of(caller_of(request))).task_names
    return _json(f'{json.dumps(about)[:-1]}, "tasks": {names}}}')


@operation.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Return the documentation as a page."""
    page = docs_page(request.app.openapi(), str(request.base_url).rstrip("/"))
    return Response(page, media_type="text/html")


@operation.get("/health/live", summary="Is the process alive?", responses=documented(503))
async def live(serving: ServingDep) -> Alive:
    """Answer at once; 503 means that only a restart helps."""
    serving.batcher.check_alive()
    return Alive()


@operation.get("/health/ready", summary="Can it predict?", responses=documented(503))
async def ready(serving: ServingDep) -> Ready:
    """Make a real prediction through the batcher, at most one a second."""
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
    """Return metrics of requests, rows, batches, queue, deltas and the process."""
    # With thousands of deltas, rendering takes longer than a probe may wait for the event loop.
    text = await asyncio.to_thread(serving.metrics.render)
    return Response(text, media_type=CONTENT_TYPE)
