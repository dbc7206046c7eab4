"""Refuses predictions that would wait too long, before anything of their bodies is read.

Under overload most of the server's work would else be reading what it then refuses. Who comes when
the queue is long is told so from the path and the headers alone; how long is too long is known to
`app.batcher`, which checks again once it knows the rows.
"""

from __future__ import annotations

import logging
import math

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import OverloadedError, error_response
from app.serving import Serving

logger = logging.getLogger(__name__)

_FAN_OUT = "/predict"
_ONE_TASK = "/predict/"
_TIMEOUT = b"x-request-timeout-ms"
_TELL_EVERY_S = 10.0


class Admission:
    """Plain ASGI, inside `app.edge.Edge`, which counts and logs what is refused here too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._num_refused = 0
        self._told_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path: str = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(_FAN_OUT) and scope["method"] == "POST":
            serving = scope["app"].state.serving
            if isinstance(serving, Serving):
                try:
                    task = path.removeprefix(_ONE_TASK) if path != _FAN_OUT else None
                    serving.batcher.check_wait(task, deadline_of(scope, serving))
                except OverloadedError as error:
                    scope["state"]["trace"].route = _FAN_OUT + ("" if task is None else "/{task}")
                    self._tell(error, serving.clock())
                    response = error_response(error, scope["state"]["request_id"])
                    await response(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _tell(self, error: OverloadedError, now: float) -> None:
        """One line now and then: a line a refusal would be more work than the refusal."""
        self._num_refused += 1
        if now - self._told_at >= _TELL_EVERY_S:
            logger.warning("refused %d since the last such line: %s", self._num_refused, error)
            self._num_refused = 0
            self._told_at = now


def deadline_of(scope: Scope, serving: Serving) -> float:
    """When a prediction must be answered: the server's limit or the client's, if that is sooner.

    Both count from the arrival, so that they cover the reading of the body.

    A header that is no number is left to FastAPI, which refuses it.
    """
    timeout_s = serving.deadline_s
    for name, value in scope["headers"]:
        if name == _TIMEOUT and value.isdigit():
            timeout_s = min(timeout_s, int(value[:12]) / 1000)
    return arrival_of(scope) + timeout_s


def arrival_of(scope: Scope) -> float:
    """When a request arrived, on the batcher's clock."""
    arrived_at: float = scope["state"]["arrived_at"]
    return arrived_at
