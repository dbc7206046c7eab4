"""Answers `InferenceClient(model=URL).text_classification(...)` of huggingface_hub.

The client sends `{"inputs": text, "parameters": {...}}` to the address itself, and reads the first
list of the answer; so an answer is a list of lists, best label first. All labels of a multi-label
task are there with their probabilities, whether they reach their thresholds or not. A regression
has one label, LABEL_0, with its value. Tested by tests/http/test_clients_hugging_face.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.http.context import Serving, ServingDep
from app.http.json_route import JsonRoute, StickyKey, TaskName, TimeoutMs
from app.http.openapi import documented
from app.http.routes.clients.answers import (
    Function,
    LabelScore,
    answer_json,
    answer_one,
    best_first,
)
from app.http.routes.clients.error_forms import error_form_of
from app.http.schemas import Inputs, RequestBody, TopK

hugging_face = APIRouter(
    tags=["clients"],
    route_class=JsonRoute,
    responses=documented(
        400, 404, 408, 413, 415, 422, 429, 500, 503, 504, form=error_form_of("/hf")
    ),
)


class ClassificationParameters(RequestBody):
    """Parameters of a text classification."""

    top_k: TopK = None
    function_to_apply: Annotated[
        Function | None,
        Field(
            description="Function of the head's outputs; unset takes softmax for one label, "
            "sigmoid for several, and none for a regression."
        ),
    ] = None


class TextClassificationRequest(RequestBody):
    """Rows to classify; a pair has the fields `text` and `text_pair`, or the task's own."""

    inputs: Inputs
    parameters: ClassificationParameters | None = None


@hugging_face.post(
    "/hf/{task}",
    summary="Classify for huggingface_hub",
    response_model=list[list[LabelScore]],
)
async def classify_for_hub(
    request: Request,
    task: TaskName,
    body: TextClassificationRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Return the labels of each row with their scores, best first."""
    return await _classify(request, serving, body, task, None)


@hugging_face.post(
    "/hf/{task}/{strategy:path}",
    summary="Classify for huggingface_hub with one strategy",
    response_model=list[list[LabelScore]],
)
async def classify_for_hub_with_strategy(
    request: Request,
    task: TaskName,
    strategy: TaskName,
    body: TextClassificationRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Return the labels of each row with their scores, best first, by the strategy's delta."""
    return await _classify(request, serving, body, task, strategy)


async def _classify(
    request: Request,
    serving: Serving,
    body: TextClassificationRequest,
    task: str,
    strategy: str | None,
) -> Response:
    asked = body.parameters or ClassificationParameters()
    answer = await answer_one(request, serving, body.inputs, task, strategy)
    spec = answer.record.manifest.task
    return answer_json(
        [best_first(spec, row.logits, asked.function_to_apply, asked.top_k) for row in answer.rows]
    )
