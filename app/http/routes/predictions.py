"""Answers `POST /predict/{task}` and `POST /predict`.

To follow a row, read `app.pipeline` next, which takes it from here to the batcher. Tested by
tests/http/test_predict.py and most other tests of tests/http.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from app.errors import BadResultError, DeadlineExceededError, DeltaUnavailableError
from app.http.context import Serving, ServingDep, get_serving
from app.http.json_route import (
    STICKY_HEADER,
    JsonRoute,
    StickyKey,
    TaskName,
    TimeoutMs,
    json_response,
)
from app.http.openapi import documented
from app.http.routes.bulk import answer_stream
from app.http.schemas import (
    FanOutRequest,
    FanOutResponse,
    PredictRequest,
    PredictResponse,
)
from app.keys.keyring import Caller
from app.pipeline import RowLogits
from app.pipeline.predictions import TargetPredictions, answer_of
from deltas import Record


class PredictionRoute(JsonRoute):
    """Takes streams of rows, too."""

    takes_streams = True

    async def stream(self, request: Request) -> Response:
        """Answer a stream of rows."""
        serving = await get_serving(request)
        find = partial(_find, request, serving)
        return await answer_stream(request, serving, caller_of(request), find)


predictions = APIRouter(
    tags=["predictions"],
    route_class=PredictionRoute,
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

    A body of type `application/x-ndjson` or `text/csv` is a stream of any number of rows. It is
    answered while it arrives, in the type that `Accept` names, or in its own.
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
    answers = await answer_rows(request, serving, body.inputs, targets, lane=key, top_k=body.top_k)
    return [answer.part for answer in answers]


class DeltaAnswer(NamedTuple):
    """The answer of one delta to the rows of a request.

    Attributes:
        record: delta that has answered.
        rows: logits of each row.
        part: the delta's part of a response.
    """

    record: Record
    rows: list[RowLogits]
    part: TargetPredictions


async def answer_rows(
    request: Request,
    serving: Serving,
    inputs: Any,
    targets: Sequence[tuple[str, str | None, str | None]],
    *,
    lane: str | None,
    top_k: int | None = None,
) -> list[DeltaAnswer]:
    """Run rows: the one way to a prediction, for the clients of every protocol.

    Args:
        request: request with its deadline and trace.
        serving: parts of the server.
        inputs: one row, or a list of rows.
        targets: task, strategy and version of each delta.
        lane: lane of the queue that the rows wait in; None is the lane of all fan-outs.
        top_k: number of scores to give; None gives all.
    """
    caller = caller_of(request)
    if caller is not None:
        for task, _, _ in targets:
            caller.check_task(task)
    deadline: float = request.state.deadline
    predict = partial(
        serving.pipeline.predict,
        inputs,
        key=lane,
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
            DeltaAnswer(record, rows, answer_of(record, rows, top_k))
            for record, rows in zip(records, results, strict=True)
        ]
    except DeadlineExceededError:
        raise DeadlineExceededError(deadline - request.state.arrived_at) from None
    except (BadResultError, DeltaUnavailableError):
        serving.metrics.on_drop("failed")  # the batcher has counted an answer
        raise
    _count(request, serving, [answer.part for answer in answers])
    if serving.traffic.rules:
        named = [version is not None for *_, version in targets]
        serving.shadow.compare(inputs, named, [answer.part for answer in answers])
    return answers


def _count(request: Request, serving: Serving, parts: Sequence[TargetPredictions]) -> None:
    """Count answered rows: by delta, by batch and by key."""
    trace, caller = request.state.trace, caller_of(request)
    for part, num_tokens in zip(parts, trace.tokens, strict=True):
        serving.metrics.on_rows(part.task, part.strategy, len(part.predictions), num_tokens)
    batches = [stage.batch.number for stage in trace.stages if stage.batch]
    serving.metrics.on_tasks(batches, [part.task for part in parts])
    if caller is not None:
        serving.metrics.on_key_rows(caller.key.name, trace.num_rows)


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
