"""Answers `POST /predict/{task}` and `POST /predict`.

To follow a row, read `app.pipeline` next, which takes it from here to the batcher. Tested by
tests/http/test_predict.py and most other tests of tests/http.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

from fastapi import APIRouter, Request, Response

from app.errors import BadResultError, DeadlineExceededError, DeltaUnavailableError
from app.http.context import Serving, ServingDep
from app.http.json_route import (
    STICKY_HEADER,
    JsonRoute,
    StickyKey,
    TaskName,
    TimeoutMs,
    json_response,
)
from app.http.openapi import documented
from app.http.schemas import (
    FanOutRequest,
    FanOutResponse,
    PredictRequest,
    PredictResponse,
)
from app.keys.keyring import Caller
from app.pipeline.predictions import TargetPredictions, answer_of
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
    (answer,) = await predict_targets(
        request, body, serving, [(task, body.strategy, body.version)], task
    )
    return json_response(
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
    results = await predict_targets(request, body, serving, targets, None)
    return json_response(
        FanOutResponse(backbone=serving.engine.backbone.ref.id, results=results).model_dump_json()
    )


async def predict_targets(
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
    batches = [stage.batch.number for stage in request.state.trace.stages if stage.batch]
    serving.metrics.on_tasks(batches, [answer.task for answer in answers])
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
