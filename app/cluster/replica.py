"""One server of a cluster: the app of `app.main` as a replica of Ray Serve.

Requests reach the app as they reach it behind uvicorn; `python -m app` and a replica differ in
three things. The replica reads the deltas and joins the others before it counts as ready
(`app.cluster.membership`), Ray asks it for its health and replaces it if that is bad, and it
reports how long rows wait, by which `wanted_replicas` adds and removes replicas. Tested by
tests/unit/app/cluster/test_replica.py and tests/integration/app/test_cluster.py.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.cluster.coordinator import Member
from app.cluster.membership import CONFIRM_S, Membership, read_number
from app.errors import NotReadyError
from app.http.middleware import REQUEST_ID_HEADER, is_sound_id
from app.main import create_app
from app.process.lifetime import prepare_process, settle_process
from app.process.logs import configure_logging
from app.process.settings import Settings

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

APP = "deltabert"
DEPLOYMENT = "server"
COORDINATOR = "deltabert-coordinator"
QUEUE_S = "queue_s"
MIDDLEWARE = "app.cluster.replica.middleware"
_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
# The beginnings of the headers by which a client gives Ray orders.
_ORDERS = (b"x-request-disconnect", b"x-request-timeout-seconds", b"serve-", b"x-session-id")
_FAILING_S = 30.0  # as in `app.http.readiness`
TARGET_QUEUE_S = 0.1  # as in docs/guide/kubernetes/hpa.yaml


class RayHeaders:
    """Keeps what clients send from steering Ray, and leaves requests to the app alone.

    By default Ray reads a body as fast as it arrives, without a limit, and cancels a request when
    its client leaves, also within a change of deltas. A header turns both off; the app has limits
    of its own, and notices clients that leave. Ray would take other headers for its own orders, and
    return any text as the request's id.

    Args:
        app: the replica's server of Ray.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = [
            (name, value)
            for name, value in scope.get("headers", ())
            if not name.replace(b"_", b"-").startswith(_ORDERS)
            and (name != _REQUEST_ID or is_sound_id(value))
        ]
        headers.append((b"x-request-disconnect-disabled", b"?1"))
        await self._app({**scope, "headers": headers}, receive, send)


def middleware() -> list[Middleware]:
    """Return what Ray puts around its server in each replica, by the name `MIDDLEWARE`."""
    return [Middleware(RayHeaders)]


class OneRequestId:
    """Removes the app's header X-Request-ID from answers, because Ray adds the same one.

    Args:
        app: the app as the replica serves it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)[REQUEST_ID_HEADER]
            await send(message)

        await self._app(scope, receive, send_without_id)


class Replica:
    """Makes the app, and tells Ray about it.

    Args:
        settings: settings of the server; those of its own address are not used.
    """

    def __init__(self, settings: Settings) -> None:
        configure_logging(settings.log_format, settings.log_level)
        prepare_process()
        self._app = create_app(settings)
        self._app.add_middleware(OneRequestId)
        self._root = next((root for root in settings.deltas if isinstance(root, Path)), None)
        self._start_server = self._app.router.lifespan_context
        self._app.router.lifespan_context = self._lifespan
        self._membership: Membership | None = None
        self._healthy_at = time.monotonic()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the app; Ray runs its lifespan before the replica is ready."""
        return self._app

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        import ray
        from ray import serve

        coordinator = ray.get_actor(COORDINATOR, namespace=APP)
        context = ray.get_runtime_context()
        replica = serve.get_replica_context().replica_tag
        member = Member(replica, context.get_node_id(), os.getpid(), context.current_actor)
        known = await read_number(coordinator)  # changes after it are read by `start`
        async with self._start_server(app):
            settle_process()
            gc.collect()
            serving = app.state.serving
            membership = Membership(coordinator, member, serving, self._root, num_running)
            await membership.start(known)
            self._membership, self._healthy_at = membership, time.monotonic()
            try:
                yield
            finally:
                await membership.stop()

    async def check_health(self) -> None:
        """Make a real prediction, as `/health/ready` does; Ray replaces a replica that can't.

        On a machine that is too busy, predictions may fail for a while, and a new replica would
        make it busier. A folder without deltas is no fault of a replica either.

        Raises:
            NotReadyError: no prediction succeeds any more, or changes of others do not arrive.
        """
        serving, membership = self._app.state.serving, self._membership
        if serving is None or membership is None:
            raise NotReadyError("the replica is starting or stopping")
        serving.batcher.check_alive()
        try:
            if serving.engine.store.records:
                await serving.readiness.check()
            self._healthy_at = time.monotonic()
        except NotReadyError:
            if time.monotonic() - self._healthy_at > _FAILING_S:
                raise
        if membership.behind_s > CONFIRM_S:
            raise NotReadyError(
                f"no news from the coordinator could be read for {membership.behind_s:.0f} s"
            )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the seconds that the oldest row of the queue has waited."""
        serving = self._app.state.serving
        return {QUEUE_S: serving.batcher.oldest_s if serving is not None else 0.0}


async def num_running() -> int:
    """Count the replicas that Ray sends requests to."""
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    application = status.applications.get(APP)
    deployment = application and application.deployments.get(DEPLOYMENT)
    return deployment.replica_states.get("RUNNING", 0) if deployment else 0


def wanted_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Tell Ray how many replicas are needed, by the time that rows wait in their queues.

    As Kubernetes' autoscaler does: their number times the mean wait over the target, at most twice
    as many at a time. Ray applies the least and the most replicas, and the delays.
    """
    waits = list((context.aggregated_metrics or {}).get(QUEUE_S, {}).values())
    now = context.current_num_replicas
    if not waits or not now:
        return context.target_num_replicas, {}
    factor = sum(waits) / len(waits) / TARGET_QUEUE_S
    # Within a tenth of the target, a change would be undone by the next one.
    return (now if 0.9 <= factor <= 1.1 else min(now * factor, now * 2.0)), {}
