"""Answers the parts of the Open Inference Protocol about the server and its repository of models.

`load` and `unload` are changes, with the rights and effects of `app.http.routes.changes`: `load`
reads the folders again and loads the model's delta, `unload` removes the delta with its files. So
`unload` takes no bare task, by which clients would remove more than they name. Tested by
tests/http/test_clients_open_inference.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect

from app.errors import ClientGoneError
from app.http.context import ServingDep
from app.http.openapi import documented
from app.http.routes.changes import AdminRoute
from app.http.routes.clients.answers import answer_json, refuse
from app.http.routes.clients.error_forms import error_form_of
from app.http.routes.clients.open_inference import ModelName
from app.http.routes.predictions import caller_of
from app.keys.keyring import Caller
from app.keys.paths import MODEL_SEPARATOR, split_model
from deltas import Store

_FORM = error_form_of("/v2")
_EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
_MANY_BYTES = 4096  # of a body that has only a few flags


def flags_body(*names: str) -> dict[str, Any]:
    """Return the documentation of a body, which may be left out, with a few flags."""
    flag = {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
    flags = dict.fromkeys(names, flag)
    schema = {"type": "object", "additionalProperties": False, "properties": flags}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


server_facts = APIRouter(tags=["clients"], responses=documented(500, 503, form=_FORM))
repository = APIRouter(
    tags=["changes"],
    route_class=AdminRoute,
    responses=documented(401, 403, 404, 409, 415, 422, 500, 503, form=_FORM),
)


class ServerDescription(BaseModel):
    """The server and the extensions of the protocol that it has."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process answers."""

    model_config = ConfigDict(frozen=True)

    live: Literal[True] = True


class ServerReady(BaseModel):
    """A prediction was made a moment ago."""

    model_config = ConfigDict(frozen=True)

    ready: Literal[True] = True


class ModelEntry(BaseModel):
    """A version of a model; the default strategy of a task bears the task's name."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str = ""


@server_facts.get("/v2", summary="Describe the server for Open Inference clients")
async def server_metadata(request: Request, serving: ServingDep) -> ServerDescription:
    """Return name, version and extensions."""
    about = request.app
    return ServerDescription(name=about.title, version=about.version, extensions=list(_EXTENSIONS))


@server_facts.get("/v2/health/live", summary="Is the process alive, for Open Inference clients?")
async def server_live(serving: ServingDep) -> ServerLive:
    """Answer at once; 503 means that only a restart helps."""
    serving.batcher.check_alive()
    return ServerLive()


@server_facts.get("/v2/health/ready", summary="Can it predict, for Open Inference clients?")
async def server_ready(serving: ServingDep) -> ServerReady:
    """Make a real prediction through the batcher, at most one a second."""
    await serving.readiness.check()
    return ServerReady()


@server_facts.post(
    "/v2/repository/index",
    summary="List all models",
    response_model=list[ModelEntry],
    responses=documented(408, 413, 422, form=_FORM),
    openapi_extra=flags_body("ready"),
)
async def index_models(request: Request, serving: ServingDep) -> Response:
    """List every version of every delta that the key may use; a body is not needed."""
    await _flags(request, {"ready"})
    # There may be thousands, and the event loop must not wait for them.
    return await asyncio.to_thread(_index, serving.engine.store, caller_of(request))


def _index(store: Store, caller: Caller | None) -> Response:
    defaults = {task: store.resolve(task).manifest.key[1] for task in store.tasks}
    entries = []
    for record in store.records:
        task, strategy = record.manifest.key
        if caller is None or caller.may_use(task):
            is_default = strategy == defaults[task]
            name = task if is_default else f"{task}{MODEL_SEPARATOR}{strategy}"
            entry = {"name": name, "version": record.version, "state": "READY", "reason": ""}
            entries.append(entry)
    return answer_json(entries)


@repository.post(
    "/v2/repository/models/{model}/load",
    summary="Load a model",
    openapi_extra=flags_body(),
)
async def load_model(request: Request, model: ModelName, serving: ServingDep) -> dict[str, Any]:
    """Read the folders again, then load the model's delta and answer a made-up row with it."""
    caller = caller_of(request)
    if caller is not None:
        caller.check_all("this reads the files of all tasks again")
    await _flags(request, set())
    async with serving.changes.turn(None):
        await serving.reload()
    await serving.pipeline.try_out(serving.engine.store.resolve(*split_model(model)))
    return {}


@repository.post(
    "/v2/repository/models/{model}/unload",
    summary="Remove a model",
    openapi_extra=flags_body("unload_dependents"),
)
async def unload_model(request: Request, model: ModelName, serving: ServingDep) -> dict[str, Any]:
    """Stop serving a delta and remove its files; requests that run are still answered by it."""
    task, strategy = split_model(model)
    await _flags(request, {"unload_dependents"})
    if strategy is None:
        default = serving.engine.store.resolve(task).manifest.key[1]
        refuse(
            "model",
            f"names a task; unload removes the files of one delta, so name it: "
            f"{task}{MODEL_SEPARATOR}{default}",
        )
    await serving.changes.withdraw(task, strategy, None)
    return {}


async def _flags(request: Request, allowed: set[str]) -> None:
    """Check a body, which may be empty, or an object whose only values are flags.

    Raises:
        InvalidInputError: the body has something else, such as the files of a model.
        ClientGoneError: the client left before its body was read.
    """
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise ClientGoneError("the client closed the connection") from None
    try:
        body = json.loads(raw or b"{}") if len(raw) <= _MANY_BYTES else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        refuse(None, f"must be empty or a JSON object of at most {_MANY_BYTES:,} bytes")
    parameters = body.pop("parameters", None) or {}  # tritonclient puts flags there
    if not isinstance(parameters, dict):
        refuse("parameters", "must be an object")
    for name, value in {**body, **parameters}.items():
        if name not in allowed:
            listed = ", ".join(sorted(allowed)) or "none"
            refuse(name[:64], f"is not a parameter of this request; allowed: {listed}")
        if value is not None and not isinstance(value, bool):
            refuse(name, "must be true or false")
