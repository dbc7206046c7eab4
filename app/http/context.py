"""The started parts of the server, as one object that `app.main` makes and the routes use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from app.batching.batcher import Batcher
from app.engine.changes import DeltaChanges
from app.engine.engine import Engine, EngineRow, Outcome
from app.engine.traffic import Traffic
from app.errors import NotReadyError
from app.http.catalogue import CatalogueViews
from app.http.readiness import Readiness
from app.http.routes.shadow import ShadowTraffic
from app.http.telemetry.metrics import Metrics
from app.pipeline import Pipeline
from deltas.publish.norms import NormCache
from deltas.store.store import NotCopied

NOT_STARTED = "the server is not started"
_FILE_THREADS = 2  # for the details of deltas; their files take memory, too


@dataclass(frozen=True)
class Serving:
    """The parts of a started server."""

    engine: Engine
    batcher: Batcher[EngineRow, Outcome]
    pipeline: Pipeline
    readiness: Readiness
    catalogue: CatalogueViews
    metrics: Metrics
    changes: DeltaChanges
    traffic: Traffic
    shadow: ShadowTraffic
    norms: NormCache = field(default_factory=NormCache)
    file_threads: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(_FILE_THREADS)
    )

    async def reload(
        self, paths: list[Path] | None = None, *, not_copied: NotCopied | None = None
    ) -> set[tuple[str, str]]:
        """Read changed deltas again, and the rules of traffic; returns the changed deltas.

        Args:
            paths: files of deltas; None takes all.
            not_copied: files of remote folders that a sync has refused, by the folder's copy.
        """
        await self.traffic.load()
        return await self.changes.reload(paths, not_copied=not_copied)


async def get_serving(request: Request) -> Serving:
    """Return the parts of the app; async, because FastAPI runs other functions in a thread.

    Raises:
        NotReadyError: the app has not started, or has stopped.
    """
    serving = request.app.state.serving
    if not isinstance(serving, Serving):
        raise NotReadyError(NOT_STARTED)
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]
