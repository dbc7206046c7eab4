"""For operators: liveness, readiness, metrics; and a first answer for those who try the address."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.routes.responses import documented
from app.schemas import Alive, Ready
from app.serving import ServingDep

router = APIRouter(tags=["operation"])


@router.get("/", summary="Say what this is", response_model=dict[str, Any])
async def index(request: Request, serving: ServingDep) -> Response:
    """Name, version, tasks, and where to read on."""
    about = {
        "name": request.app.title,
        "version": request.app.version,
        "backbone": serving.engine.backbone.ref.id,
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    text = f'{json.dumps(about)[:-1]}, "tasks": {serving.catalogue.task_names}}}'
    return Response(text, media_type="application/json")


@router.get("/health/live", summary="Is the process alive?", responses=documented(503))
async def live(serving: ServingDep) -> Alive:
    """Answers at once; 503 means that only a restart helps."""
    serving.batcher.check_alive()
    return Alive()


@router.get("/health/ready", summary="Can it predict?", responses=documented(503))
async def ready(serving: ServingDep) -> Ready:
    """Makes a real prediction through the batcher, at most one a second."""
    return Ready(latency_ms=await serving.readiness.check())


@router.get(
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
    """Requests, rows, batches, queue, deltas and process figures."""
    # With thousands of deltas it takes longer than a probe may wait for the event loop.
    text = await asyncio.to_thread(serving.metrics.render)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
