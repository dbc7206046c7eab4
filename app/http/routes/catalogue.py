"""Answers the routes that tell the tasks, deltas and scores that the server has.

Read `app.http.catalogue` next, which keeps the finished bodies. Tested by
tests/http/test_catalogue.py and tests/http/test_delta_pages.py.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.http.context import ServingDep
from app.http.json_route import json_response
from app.http.openapi import documented
from app.http.query import QueryRoute
from app.http.routes.predictions import caller_of
from app.http.schemas import Benchmark, DeltaDetails, DeltaList, DeltaQuery, TaskList, TaskQuery

catalogue = APIRouter(tags=["catalogue"], route_class=QueryRoute, responses=documented(500, 503))

Name = Annotated[str, Path(max_length=256)]
Version = Annotated[
    str | None,
    Query(description="Version of the delta; unset takes the default version.", max_length=256),
]


@catalogue.get(
    "/tasks", summary="List the tasks", response_model=TaskList, responses=documented(422)
)
async def list_tasks(
    request: Request, serving: ServingDep, query: Annotated[TaskQuery, Query()]
) -> Response:
    """List every task with its labels, text fields, strategies and rules of decision.

    With `limit` the answer is a page, and `next` leads to the next page.
    """
    seen = await serving.catalogue.of(caller_of(request))
    return json_response(seen.tasks.page(query, request.scope.get("root_path", "")))


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
    return json_response(seen.deltas.page(query, serving.engine.cache, prefix))


@catalogue.get(
    "/deltas/{task}/{strategy:path}",
    summary="Describe one delta",
    responses=documented(404, 422),
)
async def describe_delta(
    task: Name,
    strategy: Name,
    serving: ServingDep,
    version: Version = None,
) -> DeltaDetails:
    """Return a delta's manifest: its task, its training and its metrics."""
    record = serving.engine.store.resolve(task, strategy, version)
    return DeltaDetails(
        version=record.version,
        size_bytes=record.num_bytes,
        is_default=record.is_default,
        manifest=record.manifest.model_dump(mode="json"),
    )


@catalogue.get(
    "/benchmark",
    summary="Compare the deltas",
    response_model=Benchmark,
    responses=documented(422),
)
async def benchmark(
    request: Request, serving: ServingDep, query: Annotated[TaskQuery, Query()]
) -> Response:
    """Return metric, size and trained share of every delta, and the study over seeds.

    With `limit` the rows come in pages, and `next` leads to the next page.
    """
    seen = await serving.catalogue.of(caller_of(request))
    return json_response(seen.benchmark.page(query, request.scope.get("root_path", "")))
