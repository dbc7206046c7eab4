"""The outermost layer: request id, one log line and one metric a request, and the last safety net.

Plain ASGI, because middleware built on `BaseHTTPMiddleware` hides the client's disconnect from the
routes. What comes in between is in `app.http.middleware`; the routes are in `app.routes`.

What a request body may be: its size, its time, its type, its encoding.

FastAPI's own size limit answers in plain text, so that clients would meet a second error shape.

Refuses predictions that would wait too long, before anything of their bodies is read.

Under overload most of the server's work would else be reading what it then refuses. Who comes when
the queue is long is told so from the path and the headers alone; how long is too long is known to
`app.batching.batcher`, which checks again once it knows the rows.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BodiesOverloadedError,
    BodyTimeoutError,
    OverloadedError,
    TooLargeError,
    error_response,
)
from app.http.context import Serving
from app.http.metrics import Metrics
from app.pipeline import Trace
from app.process import request_id_var

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_SOUND_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = ("/health/", "/metrics")
_NO_ROUTE = "unmatched"  # never the path itself: clients choose it


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
        # when the processor is needed most, and `app.http.middleware` tells of them.
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


class _BodyRefusedError(HTTPException):
    """Raised while FastAPI reads a body, which lets no other kind of exception through.

    Its cause says why; `app.errors` answers that.
    """

    def __init__(self) -> None:
        super().__init__(400)


class BodyLimit:
    """Refuses bodies that announce too many bytes; stops reading those that send them anyway.

    Bodies stay in memory until their requests are answered, so all of them together have a limit,
    too. One that trickles in holds its part of it, and is given up after a while.

    Args:
        app: what reads the bodies.
        max_body_bytes: of one.
        max_bodies_bytes: of all at a time.
        timeout_s: for one to arrive.
    """

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, max_bodies_bytes: int, timeout_s: float
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_bodies_bytes = max_bodies_bytes
        self._timeout_s = timeout_s
        self._num_bytes = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = next((v for name, v in scope["headers"] if name == b"content-length"), b"")
        if announced.isdigit() and int(announced[:20]) > self._max_body_bytes:
            error = self._too_large(int(announced[:20]))
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        body = _Body(receive, send, self._timeout_s)

        async def receive_counted() -> Message:
            message = await body.receive()
            self._num_bytes += len(message.get("body", b""))
            if body.num_bytes > self._max_body_bytes:
                raise _BodyRefusedError from self._too_large(None)
            if self._num_bytes > self._max_bodies_bytes:
                raise _BodyRefusedError from BodiesOverloadedError(self._max_bodies_bytes)
            return message

        try:
            await self._app(scope, receive_counted, body.send)
        finally:
            self._num_bytes -= body.num_bytes

    def _too_large(self, found: int | None) -> TooLargeError:
        setting = "DELTABERT_MAX_BODY_BYTES"
        return TooLargeError("bytes in the body", found, self._max_body_bytes, setting)


class _Body:
    """One body while it is read.

    Attributes:
        num_bytes: that have come.
    """

    def __init__(self, receive: Receive, send: Send, timeout_s: float) -> None:
        self.num_bytes = 0
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._deadline: float | None = None  # from the first part to the last
        self._is_read = False

    async def receive(self) -> Message:
        """The next part; after the last one whatever comes, whenever that is."""
        if self._is_read:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        timeout = asyncio.timeout_at(self._deadline)
        try:
            async with timeout:
                message = await self._receive()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise _BodyRefusedError from BodyTimeoutError(self._timeout_s)
        self.num_bytes += len(message.get("body", b""))
        self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Close the connection after an answer to half a body: the other half may never end."""
        is_half_read = self._deadline is not None and not self._is_read
        if is_half_read and message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send(message)


_FAN_OUT = "/predict"
_ONE_TASK = "/predict/"
_TIMEOUT = b"x-request-timeout-ms"
_TELL_EVERY_S = 10.0


class Admission:
    """Plain ASGI, inside `app.http.middleware.Edge`, which counts and logs what is refused here too."""

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
                    serving.batcher.admission.admit(
                        task, 0, 0, deadline_of(scope, serving), serving.clock()
                    )
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
