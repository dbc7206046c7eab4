"""Answers the routes for operators: index, documentation, health and metrics.

Tested by tests/http/test_health.py, tests/http/test_metrics.py and tests/http/test_openapi.py.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from app.http.context import ServingDep
from app.http.json_route import json_response
from app.http.openapi import docs_page, documented
from app.http.routes.predictions import caller_of
from app.http.schemas import Alive, Ready
from app.http.telemetry.metrics import CONTENT_TYPE

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
    return json_response(f'{json.dumps(about)[:-1]}, "tasks": {names}}}')


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
