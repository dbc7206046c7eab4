"""Answers the routes that change deltas and their traffic; each needs the key of an admin.

Bodies of files are streamed to the disk and never held in memory. Read `app.engine.changes` next,
which makes the changes, and `app.engine.traffic`, which lets versions share traffic. Tested by
tests/http/test_changes.py and tests/http/test_traffic.py.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from app.engine.changes import Change
from app.errors import MAX_LISTED, ClientGoneError, ForbiddenError, UnauthorizedError
from app.http.context import ServingDep
from app.http.json_route import check_encoding, check_media_type
from app.http.openapi import documented
from app.http.query import QueryRoute
from app.http.routes.predictions import caller_of
from app.http.schemas import ChangedDelta, ReloadedDeltas, RollbackRequest
from app.keys.key import ANONYMOUS
from deltas.store.traffic import TrafficRule


class AdminRoute(QueryRoute):
    """A route that checks the key first; FastAPI reads a JSON body before all dependencies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            check_admin(request)
            check_encoding(request.headers)
            if self.body_field is not None and "content-type" in request.headers:
                check_media_type(request.headers)
            return await answer(request)

        return handle


def check_admin(request: Request) -> None:
    """Check that a request may change the server; `app.keys.middleware` has checked its task.

    Raises:
        ForbiddenError: the server has no keys, or the request's key lacks the scope admin.
        UnauthorizedError: the request has no key.
    """
    caller = caller_of(request)
    if caller is None:
        raise ForbiddenError(
            "changes over HTTP are off; set DELTABERT_KEYS_FILE to a file with a key of the scope "
            "admin, and restart"
        )
    if caller.key.name == ANONYMOUS:
        raise UnauthorizedError("this needs a key of the scope admin (Authorization: Bearer KEY)")
    caller.check_scope("admin")


changes = APIRouter(
    tags=["changes"],
    route_class=AdminRoute,
    responses=documented(401, 403, 409, 415, 422, 500, 503),
)

Name = Annotated[str, Path(max_length=256)]
Version = Annotated[str | None, Query(description="Only this version.", max_length=256)]
_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file of a delta (.safetensors).",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@changes.post("/deltas/reload", summary="Read the folders again")
async def reload_deltas(serving: ServingDep) -> ReloadedDeltas:
    """Serve files that were added, replaced or removed since the folders were read.

    A bad file changes nothing: the last good version goes on, and `GET /deltas` has the reason.
    """
    async with serving.changes.turn(None):
        names = await serving.reload()
    store = serving.engine.store
    return ReloadedDeltas(
        num_changed=len(names),
        changed=[f"{task}/{strategy}" for task, strategy in sorted(names)[:MAX_LISTED]],
        num_deltas=len(store.records),
        num_rejected=len(store.all_rejected),
        num_rejected_rules=len(serving.traffic.rejected),
    )


@changes.post(
    "/deltas/{task}/{strategy:path}/rollback",
    summary="Make an earlier version the default",
    responses=documented(404, 422),
)
async def roll_back_delta(
    task: Name, strategy: Name, serving: ServingDep, body: RollbackRequest | None = None
) -> ChangedDelta:
    """Answer by a kept version again: the named one, or the last one before the default."""
    version = body.version if body else None
    return _changed(task, strategy, await serving.changes.roll_back(task, strategy, version))


@changes.put(
    "/deltas/{task}/{strategy:path}",
    summary="Add or replace a delta",
    responses=documented(404, 408, 413, 422),
    openapi_extra=_FILE,
)
async def publish_delta(
    request: Request, task: Name, strategy: Name, serving: ServingDep
) -> ChangedDelta:
    """Serve a file as the default version of its task and strategy, and keep it on disk.

    It is checked and tried on a row first. Requests that run are answered by the version that they
    found; after this answer, every new one gets the new version.
    """
    try:
        change = await serving.changes.publish(task, strategy, request.stream())
    except ClientDisconnect:
        raise ClientGoneError("the client closed the connection") from None
    return _changed(task, strategy, change)


@changes.delete(
    "/deltas/{task}/{strategy:path}",
    summary="Remove a delta, or one of its versions",
    responses=documented(404, 422),
)
async def withdraw_delta(
    task: Name, strategy: Name, serving: ServingDep, version: Version = None
) -> ChangedDelta:
    """Stop serving a delta and remove its files; requests that run are still answered by it."""
    return _changed(task, strategy, await serving.changes.withdraw(task, strategy, version))


def _changed(task: str, strategy: str, change: Change) -> ChangedDelta:
    return ChangedDelta(
        task=task,
        strategy=strategy,
        version=change.versions[0] if change.versions else None,
        previous=change.previous,
        versions=list(change.versions),
    )


traffic = APIRouter(
    tags=["changes"],
    route_class=AdminRoute,
    responses=documented(401, 403, 404, 415, 422, 500, 503),
)
_PATH = "/traffic/{task}/{strategy:path}"


@traffic.put(_PATH, summary="Share the traffic of a delta", responses=documented(409, 413))
async def set_traffic(
    task: Name, strategy: Name, body: TrafficRule, serving: ServingDep
) -> TrafficRule:
    """Let a second version answer a share of the requests, or see their rows, or both.

    A split is sticky by the header `X-Sticky-Key`, and random without it. A request that names a
    version is answered by that one.
    """
    await serving.traffic.set((task, strategy), body)
    return body


@traffic.get(_PATH, summary="Show how a delta's traffic is shared")
async def show_traffic(task: Name, strategy: Name, serving: ServingDep) -> TrafficRule:
    """Return the rule of a delta; both parts are null if its default version answers alone."""
    serving.engine.store.resolve(task, strategy)
    return serving.traffic.rules.get((task, strategy), TrafficRule())


@traffic.delete(_PATH, summary="Let the default version answer alone", responses=documented(409))
async def clear_traffic(task: Name, strategy: Name, serving: ServingDep) -> TrafficRule:
    """Remove the rule of a delta; its default version answers all requests again.

    If a folder that is only read has a rule for it, that one counts again, and is the answer.
    """
    return await serving.traffic.clear((task, strategy))
