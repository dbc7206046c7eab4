"""What the routes need, as one object and one dependency."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.batching.batcher import Batcher
from app.engine.engine import Engine, EngineRow, Outcome
from app.errors import NotReadyError
from app.http.catalogue import Catalogue
from app.http.metrics import Metrics
from app.http.readiness import Readiness
from app.pipeline import Pipeline


@dataclass(frozen=True)
class Serving:
    """The parts of a started server.

    Attributes:
        deadline_s: the longest that a request may take.
        clock: the batcher's.
    """

    engine: Engine
    batcher: Batcher[EngineRow, Outcome]
    pipeline: Pipeline
    readiness: Readiness
    catalogue: Catalogue
    metrics: Metrics
    deadline_s: float
    clock: Callable[[], float] = time.monotonic


async def get_serving(request: Request) -> Serving:
    """The parts of the app that the request came to; async, or FastAPI calls it in a thread.

    Raises:
        NotReadyError: it has not started, or has stopped.
    """
    serving = request.app.state.serving
    if not isinstance(serving, Serving):
        raise NotReadyError("the server is not started")
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]
