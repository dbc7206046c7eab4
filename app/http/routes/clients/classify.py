"""Answers `/classify` of vLLM and of the Semantic Router, told apart by the fields of the body.

vLLM sends `{"model", "input"}` and gets one class with all probabilities for each input. The
Semantic Router sends `{"inputs"}` and gets the whole distribution of a text as one flat list, whose
scores must sum to one; the task is the only one that its key may use. Tested by
tests/http/test_clients_classify.py.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from app.http.context import Serving, ServingDep
from app.http.json_route import JsonRoute, StickyKey, TimeoutMs
from app.http.openapi import documented
from app.http.routes.clients.answers import (
    Function,
    LabelScore,
    answer_json,
    answer_one,
    best_first,
    is_distribution,
    model_of,
    outputs_of,
    refuse,
    spec_of,
)
from app.http.routes.clients.error_forms import error_form_of
from app.http.schemas import Inputs, Name, RequestBody

_TOLERANCE = 0.02  # of the sum that the Semantic Router accepts

classify = APIRouter(
    tags=["clients"],
    route_class=JsonRoute,
    responses=documented(
        400, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504, form=error_form_of("/classify")
    ),
)


class VllmClassifyRequest(RequestBody):
    """Rows to classify, as vLLM takes them."""

    model: Annotated[
        Name | None,
        Field(
            description="A task, or `task:strategy`; unset is the only task that the key may use."
        ),
    ] = None
    input: Inputs
    use_activation: Annotated[
        bool | None,
        Field(strict=True, description="False gives the head's outputs in place of probabilities."),
    ] = None


class RouterClassifyRequest(RequestBody):
    """Rows to classify, as the Semantic Router sends them."""

    inputs: Inputs


class ClassifyRequest(RootModel[VllmClassifyRequest | RouterClassifyRequest]):
    """A request of vLLM's clients, or of the Semantic Router if it has the field `inputs`."""

    @model_validator(mode="before")
    @classmethod
    def _by_fields(cls, data: Any) -> Any:
        is_router = isinstance(data, dict) and "inputs" in data
        return (RouterClassifyRequest if is_router else VllmClassifyRequest).model_validate(data)


class ClassifiedInput(BaseModel):
    """The class of one input."""

    model_config = ConfigDict(frozen=True)

    index: int
    label: Annotated[str | None, Field(description="The best label; null for a regression.")]
    probs: Annotated[list[float], Field(description="Scores in the order of the task's labels.")]
    num_classes: int


class TokenUsage(BaseModel):
    """The tokens that a request took."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class VllmClassification(BaseModel):
    """The classes of all inputs, as vLLM answers."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["list"] = "list"
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: str
    data: list[ClassifiedInput]
    usage: TokenUsage


@classify.post(
    "/classify",
    summary="Classify for clients of vLLM and for the Semantic Router",
    response_model=VllmClassification | list[LabelScore] | list[list[LabelScore]],
)
async def classify_rows(
    request: Request,
    body: ClassifyRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Return vLLM's answer for `input`, and the Semantic Router's for `inputs`."""
    if isinstance(body.root, RouterClassifyRequest):
        return await _for_router(request, serving, body.root)
    return await _for_vllm(request, serving, body.root)


async def _for_vllm(request: Request, serving: Serving, body: VllmClassifyRequest) -> Response:
    task, strategy = model_of(request, serving, body.model)
    answer = await answer_one(request, serving, body.input, task, strategy)
    spec = answer.record.manifest.task
    function: Function | None = "none" if body.use_activation is False else None
    data = []
    for index, row in enumerate(answer.rows):
        scores = outputs_of(spec, row.logits, function)
        label = spec.labels[scores.index(max(scores))] if spec.labels else None
        data.append(
            ClassifiedInput(index=index, label=label, probs=scores, num_classes=len(scores))
        )
    num_tokens = sum(request.state.trace.tokens)
    found = VllmClassification(
        id=f"classify-{request.state.request_id}",
        created=int(time.time()),
        model=body.model or task,
        data=data,
        usage=TokenUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return Response(found.model_dump_json(), media_type="application/json")


async def _for_router(request: Request, serving: Serving, body: RouterClassifyRequest) -> Response:
    task, _ = model_of(request, serving, None)
    spec = spec_of(request, serving, task)
    if spec.kind != "single_label":
        refuse(
            "inputs",
            f"are for {task!r}, a {spec.kind} task, whose scores are no distribution; send "
            f"`model` and `input`, or use /predict/{task}",
        )
    answer = await answer_one(request, serving, body.inputs, task)
    spec = answer.record.manifest.task
    lists = [best_first(spec, row.logits) for row in answer.rows]
    assert all(is_distribution([each["score"] for each in row], _TOLERANCE) for row in lists)
    return answer_json(lists if isinstance(body.inputs, list) else lists[0])
