"""Answers the Open Inference Protocol v2 over HTTP, as tritonclient and KServe speak it.

A model is a task ("sst2") or a delta ("sst2:layernorm"). Its inputs are tensors of texts with the
names of the task's fields, or `text` and `text_pair`. JSON and the binary form work, with any type
of content or none, because tritonclient sends none. `app.http.routes.clients.repository` has the
routes that list, load and unload models. Tested by tests/http/test_clients_open_inference.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers

from app.http.context import ServingDep
from app.http.json_route import JsonRoute, StickyKey, TimeoutMs, check_encoding, read_json
from app.http.openapi import documented
from app.http.query import QueryRoute
from app.http.routes.clients.answers import answer_one, refuse, spec_of
from app.http.routes.clients.error_forms import error_form_of
from app.http.routes.clients.tensors import (
    InferRequest,
    OutputTensor,
    RequestedOutput,
    Values,
    read_texts,
    write_tensor,
)
from app.http.routes.predictions import DeltaAnswer
from app.keys.paths import split_model
from app.pipeline.predictions import LabelPrediction, LabelsPrediction, ValuePrediction
from deltas import TaskSpec

JSON_LENGTH_HEADER = "Inference-Header-Content-Length"

_FORM = error_form_of("/v2")
ModelName = Annotated[
    str, Path(description="A task, or `task:strategy` for one of its deltas.", max_length=256)
]
ModelVersion = Annotated[str, Path(description="A version of GET /deltas.", max_length=256)]


class InferRoute(JsonRoute):
    """A route whose body is JSON, with the bytes of tensors after it if a header says so."""

    def check_headers(self, headers: Headers) -> None:
        """Refuse a compressed body; clients name different types of content, or none."""
        check_encoding(headers)

    async def read(self, request: Request) -> Any:
        """Return the values of the JSON; the bytes after it become `request.state.tail`."""
        length = request.headers.get(JSON_LENGTH_HEADER)
        if length is not None and not (length.isascii() and length.isdigit()):
            refuse(JSON_LENGTH_HEADER, "must be the number of bytes of the JSON, in digits alone")

        async def read_head() -> bytes:
            raw = await request.body()
            size = len(raw) if length is None else int(length[:20])
            if size > len(raw):
                found = f"says {size:,}, but the body has {len(raw):,} bytes"
                refuse(JSON_LENGTH_HEADER, found)
            request.state.tail = raw[size:]
            return raw[:size]

        return await read_json(request, read_head)


inference = APIRouter(
    tags=["clients"],
    route_class=InferRoute,
    responses=documented(400, 404, 408, 413, 415, 422, 429, 500, 503, 504, form=_FORM),
)
models = APIRouter(
    tags=["clients"], route_class=QueryRoute, responses=documented(404, 422, 500, 503, form=_FORM)
)


class InferResponse(BaseModel):
    """The answer to all rows as tensors."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


@inference.post(
    "/v2/models/{model}/infer", summary="Infer with a model", response_model=InferResponse
)
async def infer(
    request: Request,
    model: ModelName,
    body: InferRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Classify the rows of one tensor for each text field, by the model's default version."""
    return await _infer(request, body, serving, model, None)


@inference.post(
    "/v2/models/{model}/versions/{version}/infer",
    summary="Infer with a version of a model",
    response_model=InferResponse,
)
async def infer_with_version(
    request: Request,
    model: ModelName,
    version: ModelVersion,
    body: InferRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Classify the rows of one tensor for each text field, by the version that is named."""
    return await _infer(request, body, serving, model, version)


async def _infer(
    request: Request, body: InferRequest, serving: ServingDep, model: str, version: str | None
) -> Response:
    if body.model_name not in (None, model):
        refuse("model_name", f"is {body.model_name!r}, but the path names {model!r}")
    task, strategy = split_model(model)
    spec = spec_of(request, serving, task, strategy, version)
    known = [each.name for each in _described_outputs(spec)]
    wanted = body.outputs or [RequestedOutput(name=name) for name in known]
    for output in wanted:
        if output.name not in known:
            refuse("outputs", f"name {output.name[:64]!r}; {model!r} gives {', '.join(known)}")
    max_rows = request.app.state.settings.max_rows_per_request
    rows = _rows(read_texts(body.inputs, request.state.tail, max_rows))
    answer = await answer_one(request, serving, rows, task, strategy, version)
    given = {values.name: values for values in _values(answer)}
    everything = bool(body.parameters and body.parameters.binary_data_output)
    written = []
    for output in wanted:
        asked = output.parameters
        values = given[output.name]
        if asked and asked.classification is not None:
            values = _best(values, asked.classification)
        as_bytes = asked.binary_data if asked else None
        written.append(write_tensor(values, as_bytes=everything if as_bytes is None else as_bytes))
    response = InferResponse(
        model_name=model,
        model_version=answer.record.version,
        id=body.id,
        outputs=[tensor for tensor, _ in written],
    )
    head = response.model_dump_json(exclude_none=True).encode()
    tail = b"".join(part for _, part in written)
    if not tail:
        return Response(head, media_type="application/json")
    headers = {JSON_LENGTH_HEADER: str(len(head))}
    return Response(head + tail, headers=headers, media_type="application/octet-stream")


def _rows(texts: dict[str, list[Any]]) -> list[Any]:
    """Return the rows of some tensors; wrong names of fields are told by `app.pipeline`."""
    counts = {name: len(column) for name, column in texts.items()}
    if len(set(counts.values())) != 1:
        found = " and ".join(f"{count:,} in {name[:64]!r}" for name, count in counts.items())
        refuse("inputs", f"must have as many rows in each tensor, and have {found}")
    columns = zip(*texts.values(), strict=True)
    return [dict(zip(texts, row, strict=True)) for row in columns]


def _values(answer: DeltaAnswer) -> Iterator[Values]:
    """Yield all output tensors, in the order of `_described_outputs`."""
    labels, rows = answer.record.manifest.task.labels, answer.part.predictions
    one = [row for row in rows if isinstance(row, LabelPrediction)]
    several = [row for row in rows if isinstance(row, LabelsPrediction)]
    numbers = [row.value for row in rows if isinstance(row, ValuePrediction)]
    if numbers:
        yield Values("value", [len(rows)], "FP32", numbers)
        return
    if one:
        yield Values("label", [len(rows)], "BYTES", [row.label for row in one])
        yield Values("score", [len(rows)], "FP32", [row.score for row in one])
    shape = [len(rows), len(labels)]
    by_label = [row.scores for row in one] + [row.scores for row in several]
    scores = [row[label] for row in by_label for label in labels]
    yield Values("scores", shape, "FP32", scores, labels)
    if several:
        fires = [label in row.labels for row in several for label in labels]
        yield Values("fires", shape, "BOOL", fires, labels)


def _best(values: Values, count: int) -> Values:
    """Return the best columns of each row as texts, as Triton's extension writes them."""
    if values.labels is None or values.datatype != "FP32":
        refuse("outputs", f"ask for a classification of {values.name!r}; only scores have one")
    width = len(values.labels)
    count = min(count, width)
    texts = []
    for start in range(0, len(values.flat), width):
        row = values.flat[start : start + width]
        best = sorted(range(width), key=row.__getitem__, reverse=True)[:count]
        texts += [f"{row[number]:f}:{number}:{values.labels[number]}" for number in best]
    return Values(values.name, [values.shape[0], count], "BYTES", texts)


class TensorDescription(BaseModel):
    """The name, type and shape of a tensor; -1 stands for the number of rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    datatype: Literal["BYTES", "FP32", "BOOL"]
    shape: list[int]
    parameters: Annotated[
        dict[str, Any] | None, Field(description="`labels`: names of the columns.")
    ] = None


class ModelDescription(BaseModel):
    """A model with its versions, the default one first, and its tensors."""

    model_config = ConfigDict(frozen=True)

    name: str
    versions: list[str]
    platform: Literal["deltabert"] = "deltabert"
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class ModelReady(BaseModel):
    """A model that can infer."""

    model_config = ConfigDict(frozen=True)

    name: str
    ready: Literal[True] = True


def _described_outputs(task: TaskSpec) -> list[TensorDescription]:
    if task.kind == "regression":
        return [TensorDescription(name="value", datatype="FP32", shape=[-1])]
    by_label: dict[str, Any] = {
        "shape": [-1, len(task.labels)],
        "parameters": {"labels": list(task.labels)},
    }
    scores = TensorDescription(name="scores", datatype="FP32", **by_label)
    if task.kind == "multi_label":
        return [scores, TensorDescription(name="fires", datatype="BOOL", **by_label)]
    return [
        TensorDescription(name="label", datatype="BYTES", shape=[-1]),
        TensorDescription(name="score", datatype="FP32", shape=[-1]),
        scores,
    ]


async def _describe(serving: ServingDep, model: str, version: str | None) -> ModelDescription:
    task, strategy = split_model(model)
    record = serving.engine.store.resolve(task, strategy, version)
    versions = [each.version for each in serving.engine.store.versions(*record.manifest.key)]
    return ModelDescription(
        name=model,
        versions=versions if version is None else [version],
        inputs=[
            TensorDescription(name=field, datatype="BYTES", shape=[-1])
            for field in record.manifest.task.text_fields
        ],
        outputs=_described_outputs(record.manifest.task),
    )


@models.get("/v2/models/{model}", summary="Describe a model", response_model_exclude_none=True)
async def model_metadata(model: ModelName, serving: ServingDep) -> ModelDescription:
    """Return versions and tensors of a model."""
    return await _describe(serving, model, None)


@models.get(
    "/v2/models/{model}/versions/{version}",
    summary="Describe a version of a model",
    response_model_exclude_none=True,
)
async def model_version_metadata(
    model: ModelName, version: ModelVersion, serving: ServingDep
) -> ModelDescription:
    """Return the tensors of a version."""
    return await _describe(serving, model, version)


@models.get("/v2/models/{model}/ready", summary="Can a model infer?")
async def model_ready(model: ModelName, serving: ServingDep) -> ModelReady:
    """Check that the model is served, and make a real prediction, at most one a second."""
    serving.engine.store.resolve(*split_model(model))
    await serving.readiness.check()
    return ModelReady(name=model)


@models.get("/v2/models/{model}/versions/{version}/ready", summary="Can a version infer?")
async def model_version_ready(
    model: ModelName, version: ModelVersion, serving: ServingDep
) -> ModelReady:
    """Check that the version is served, and make a real prediction, at most one a second."""
    serving.engine.store.resolve(*split_model(model), version)
    await serving.readiness.check()
    return ModelReady(name=model)
