"""The outermost layer: request id, one log line and one metric a request, and the last safety net.

Plain ASGI, because middleware built on `BaseHTTPMiddleware` hides the client's disconnect from the
routes. What comes in between is in `app.limits`; the routes are in `app.routes`.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import error_response
from app.logs import request_id_var
from app.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = ("/health/", "/metrics")
_NO_ROUTE = "unmatched"  # never the path itself: clients choose it


@dataclass
class Trace:
    """What the log line says about a prediction; the pipeline fills it in.

    Attributes:
        route: template of the path, where a request is answered before it is routed.
    """

    num_rows: int = 0
    num_tokens: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    route: str | None = None


class Edge:
    """Wraps the app; everything that raises in there ends as an error response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_at = time.monotonic()  # the batcher's clock
        request_id = _request_id(scope)
        token = request_id_var.set(request_id)
        trace = Trace()
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, trace=trace, arrived_at=arrived_at)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_ID_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("unexpected error")
            if status:  # half an answer is out: the server must cut the connection
                raise
            await error_response(error, request_id)(scope, receive, send_with_id)
        finally:
            self._note(scope, status or 499, time.monotonic() - arrived_at, trace)
            request_id_var.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        route: str = trace.route or getattr(scope.get("route"), "path_format", None) or _NO_ROUTE
        self._metrics.on_request(scope["method"], route, status, seconds)
        # Probes come every second or so and say nothing when all is well; refusals come in masses
        # when the processor is needed most, and `app.admission` tells of them.
        is_probe = status == HTTPStatus.OK and route.startswith(_PROBES)
        is_quiet = is_probe or status == HTTPStatus.TOO_MANY_REQUESTS
        level = logging.DEBUG if is_quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        facts = {
            "method": scope["method"][:16],
            "route": route,
            "status": status,
            "rows": trace.num_rows,
            "tokens": trace.num_tokens,
            "queue_ms": round(trace.queue_s * 1000, 1),
            "compute_ms": round(trace.compute_s * 1000, 1),
            "total_ms": round(seconds * 1000, 1),
        }
        logger.log(
            level,
            "%(method)s %(route)s %(status)d rows=%(rows)d tokens=%(tokens)d "
            "queue=%(queue_ms).1fms compute=%(compute_ms).1fms total=%(total_ms).1fms",
            facts,
            extra={"facts": facts},
        )


def _request_id(scope: Scope) -> str:
    """The client's own id if it can go into a log and a header as it is, else a new one."""
    for name, value in scope["headers"]:
        if name == _ID_HEADER:
            given: str = value.decode("latin-1")
            return given if _SOUND_ID.fullmatch(given) else uuid.uuid4().hex
    return uuid.uuid4().hex
