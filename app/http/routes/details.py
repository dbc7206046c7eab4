"""Answers what lies in and beside a delta's file: how far it changes the backbone, its predictions.

Both are read in a thread, because files may be large or slow. Read `deltas.publish.norms` and
`deltas.store.predictions` next. Tested by tests/http/test_details.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Response

from app.errors import DeltaUnavailableError
from app.http.context import Serving, ServingDep
from app.http.openapi import documented
from app.http.query import QueryRoute
from app.http.routes.catalogue import Name, Version
from deltas import DeltaError
from deltas.publish.norms import DeltaNorms
from deltas.store.predictions import MAX_ROWS, PredictedRows, read_rows

details = APIRouter(
    tags=["catalogue"], route_class=QueryRoute, responses=documented(404, 422, 500, 503)
)

Answer = TypeVar("Answer")


@details.get(
    "/deltas/{task}/{strategy:path}/norms", summary="Show where a delta changes the backbone"
)
async def describe_change(
    task: Name, strategy: Name, serving: ServingDep, version: Version = None
) -> DeltaNorms:
    """Return the norm of trained minus frozen values by layer, part and kind, without the head."""
    record = serving.engine.store.resolve(task, strategy, version)
    try:
        return await _in_thread(serving, partial(serving.norms.of, record, serving.engine.backbone))
    except (DeltaError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise DeltaUnavailableError(task, strategy, record.version, reason) from error


@details.get(
    "/deltas/{task}/{strategy:path}/predictions",
    summary="Return the predictions that a run left beside its delta",
    response_model=PredictedRows,
)
async def predictions_of_run(
    task: Name,
    strategy: Name,
    serving: ServingDep,
    version: Version = None,
    split: Annotated[
        str | None,
        Query(
            description="Split; unset takes the one that the delta is judged by.", max_length=256
        ),
    ] = None,
    offset: Annotated[int, Query(ge=0, le=2**31, description="Number of rows to skip.")] = 0,
    limit: Annotated[
        int,
        Query(
            ge=1, le=MAX_ROWS, description="Maximum number of rows; fewer if there are many labels."
        ),
    ] = MAX_ROWS,
) -> Response:
    """Return row numbers, labels and logits of a split, never a text; by pages.

    A delta without the file `<strategy>.predictions.parquet` of its own version has none (404).
    """
    record = serving.engine.store.resolve(task, strategy, version)

    def write() -> str:
        return read_rows(record, split, offset, limit).model_dump_json()

    return Response(await _in_thread(serving, write), media_type="application/json")


async def _in_thread(serving: Serving, read: Callable[[], Answer]) -> Answer:
    """Read in one of few threads; others wait without one.

    The threads of asyncio also follow the file of keys and read streams, so no number of requests
    may hold them.
    """
    async with serving.file_threads:
        return await asyncio.to_thread(read)
