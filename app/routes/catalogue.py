"""What is served: tasks, deltas with their manifests, and the benchmark table made of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from app.routes.responses import documented
from app.schemas import Benchmark, DeltaDetails, DeltaList, TaskList
from app.serving import ServingDep

router = APIRouter(tags=["catalogue"], responses=documented(500, 503))

Name = Annotated[str, Path(max_length=256)]


@router.get("/tasks", summary="List the tasks", response_model=TaskList)
async def list_tasks(serving: ServingDep) -> Response:
    """Every task with its labels, its text fields and its strategies."""
    return _json(serving.catalogue.tasks)


@router.get("/deltas", summary="List the deltas", response_model=DeltaList)
async def list_deltas(serving: ServingDep) -> Response:
    """Every delta that is served, and every file that could not be, with the reason."""
    return _json(serving.catalogue.deltas)


@router.get(
    "/deltas/{task}/{strategy:path}",
    summary="Describe one delta",
    responses=documented(404, 422),
)
async def describe_delta(
    task: Name,
    strategy: Name,
    serving: ServingDep,
    version: Annotated[
        str | None, Query(description="Unset: the one that answers by default.", max_length=256)
    ] = None,
) -> DeltaDetails:
    """A delta's manifest: what it is for, how it was trained, and how well it does."""
    record = serving.engine.store.resolve(task, strategy, version)
    return DeltaDetails(
        version=record.version,
        size_bytes=record.num_bytes,
        is_default=record.is_default,
        manifest=record.manifest.model_dump(mode="json"),
    )


@router.get("/benchmark", summary="Compare the deltas", response_model=Benchmark)
async def benchmark(serving: ServingDep) -> Response:
    """Metric, size and trained share of every delta, and the study over several seeds."""
    return _json(serving.catalogue.benchmark)


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
