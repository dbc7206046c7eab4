"""Surrounds the routes: request ids, log lines, error responses, body limits, load shedding.

Plain ASGI, because middleware built on `BaseHTTPMiddleware` hides the client's disconnect from the
routes. `app.main` puts the classes around each other, in the order of this file. Read
`app.http.json_route` next. Tested by tests/http/test_errors.py, tests/http/test_bodies.py and
tests/http/test_overload.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from functools import partial
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    STOPPING,
    BodiesOverloadedError,
    BodyTimeoutError,
    NotReadyError,
    OverloadedError,
    TooLargeError,
    error_response,
)
from app.http.context import Serving
from app.http.json_route import STREAM_TYPES, TIMEOUT_HEADER
from app.http.routes.clients.error_forms import write_error_of
from app.http.telemetry.metrics import Metrics
from app.keys.paths import prediction_at, route_path
from app.pipeline import Trace
from app.pipeline.bulk.rows import MAX_ROW_BYTES
from app.process.logs import request_id_var

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
_REQUEST_ID = REQUEST_ID_HEADER.lower().encode()
_TIMEOUT = TIMEOUT_HEADER.lower().encode()
_SOUND_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PROBES = ("/health/", "/metrics")
_NO_ROUTE = "unmatched"  # never the path itself, which clients choose
_FILES = "/deltas/"
_ONE_TASK = "/predict/"
_STREAMS = {name.encode() for name in STREAM_TYPES}
_STREAM_BYTES = 2 * MAX_ROW_BYTES  # that a stream counts as: a row that is read, and its text
_LOG_EVERY_S = 10.0
_IN_SUMMARY = (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS)


def is_sound_id(value: bytes) -> bool:
    """Tell whether a client's id of a request can go into a log and a header as it is."""
    return _SOUND_ID.fullmatch(value) is not None


class _RefusalLog:
    """Logs a summary of refusals now and then; a line for each would cost more than it tells."""

    def __init__(self) -> None:
        self._num_refused = 0
        self._logged_at = -math.inf

    def note(self, last: object) -> None:
        """Count a refusal, and log the number and this last one if it is time."""
        self._num_refused += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            logger.warning("refused %d since the last such line: %s", self._num_refused, last)
            self._num_refused = 0
            self._logged_at = now


class RequestContextMiddleware:
    """Gives each request an id, a deadline, a log line and a metric.

    Exceptions that nothing else has answered become error responses here.

    Args:
        app: app to surround.
        metrics: counts the requests.
        deadline_s: longest time that a prediction may take.
        root_path: path prefix of the server; empty for none, or for that of uvicorn's option.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, deadline_s: float, root_path: str = ""
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._root_path = root_path
        self._without_key = _RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if self._root_path:
            scope["root_path"] = self._root_path
        scope = _plain(scope)
        arrived_at = time.monotonic()  # the batcher's clock
        request_id, timeout_s = self._read_headers(scope)
        token = request_id_var.set(request_id)
        trace = Trace()
        # The deadline counts from the arrival, so that it covers the reading of the body.
        scope.setdefault("state", {}).update(
            request_id=request_id,
            write_error=partial(write_error_of, scope),  # asked for when something fails
            trace=trace,
            arrived_at=arrived_at,
            deadline=arrived_at + timeout_s,
        )
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_REQUEST_ID, request_id.encode())]
            elif method == "HEAD":
                message["body"] = b""
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if status:
                raise
            # Only the end of the server cancels requests, in the end those that have no deadline.
            error = NotReadyError(STOPPING)
            await _send_error(error, scope, receive, send_with_id)
        except Exception as error:
            logger.exception("unexpected error")
            if status:  # half an answer is out: the server must cut the connection
                raise
            await _send_error(error, scope, receive, send_with_id)
        finally:
            self._note(method, scope, status or 499, time.monotonic() - arrived_at, trace)
            request_id_var.reset(token)

    def _read_headers(self, scope: Scope) -> tuple[str, float]:
        """Return the request's id and the seconds until its deadline.

        A client's id is used if it can go into a log and a header as it is. A timeout that is no
        number is left to `app.http.json_route`, which refuses it.
        """
        request_id, timeout_s = "", self._deadline_s
        for name, value in scope["headers"]:
            if name == _REQUEST_ID and not request_id:
                request_id = value.decode() if is_sound_id(value) else uuid.uuid4().hex
            elif name == _TIMEOUT and value.isdigit():
                timeout_s = min(timeout_s, int(value.lstrip(b"0")[:12] or b"0") / 1000)
        return request_id or uuid.uuid4().hex, timeout_s

    def _note(self, method: str, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        route: str = trace.route or getattr(scope.get("route"), "path_format", None) or _NO_ROUTE
        trace.route = route
        if trace.answered_at is not None:
            trace.end("write", trace.answered_at)
        # A client of another protocol may get a status below 500 for a failure of the server.
        self._metrics.on_request(method, route, trace.cause_status or status, seconds)
        for stage in trace.stages:
            self._metrics.on_stage(stage.name, stage.ended_at - stage.began_at)
        if status >= HTTPStatus.BAD_REQUEST:
            self._metrics.on_error(trace.code or "")
        # Successful probes come every second or so. Refusals come in masses when the CPU is needed
        # most, and requests without a key come from anyone; both are logged in summary.
        is_probe = status == HTTPStatus.OK and route.startswith(_PROBES)
        if status == HTTPStatus.UNAUTHORIZED:
            self._without_key.note(f"{method[:16]} {route} {trace.code}")
        is_quiet = is_probe or status in _IN_SUMMARY
        level = logging.DEBUG if is_quiet else logging.INFO
        if not logger.isEnabledFor(level):
            return
        facts = {
            "method": method[:16],
            "route": route,
            "status": status,
            "rows": trace.num_rows,
            "tokens": sum(trace.tokens),
            "queue_ms": round(trace.queue_s * 1000, 1),
            "compute_ms": round(trace.compute_s * 1000, 1),
            "total_ms": round(seconds * 1000, 1),
        }
        if "trace_id" in scope["state"]:
            facts["trace_id"] = scope["state"]["trace_id"]
        text = (
            "%(method)s %(route)s %(status)d rows=%(rows)d tokens=%(tokens)d "
            "queue=%(queue_ms).1fms compute=%(compute_ms).1fms total=%(total_ms).1fms"
        )
        if trace.key is not None:
            facts["key"] = trace.key
            text += " key=%(key)s"
        logger.log(
            level,
            text,
            facts,
            extra={"facts": facts},
        )


def _plain(scope: Scope) -> Scope:
    """Return the scope that the routes know: GET instead of HEAD, and no slash at the end."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path == prefix:  # the root, as some proxies write it
        scope = {**scope, "path": f"{prefix}/"}
    elif path.endswith("/") and path not in ("/", f"{prefix}/"):
        scope = {**scope, "path": path[:-1]}
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


async def _send_error(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error, and note its code."""
    state = scope["state"]
    response = error_response(error, state["request_id"], state["write_error"]())
    state["trace"].code, state["trace"].cause_status = response.code, response.cause_status
    await response(scope, receive, send)


class BodyLimitMiddleware:
    """Refuses bodies that are too large or too slow.

    A body that announces too many bytes is not read, and reading stops when too many arrive. Bodies
    stay in memory until their requests are answered, so all of them together have a limit, too. A
    body that trickles in holds its part of that limit, and is given up after a while.

    A file that is uploaded (PUT below /deltas) goes to the disk as it arrives. It may be larger,
    and each of its parts has the time of a body; all of them together have a limit, too.

    Each part of a stream of rows has the time of a body. The stream has no limit of bytes, but its
    rows do, and few of them are in memory. Their number at a time has a limit, since each may hold
    an unfinished row.

    Args:
        app: app that reads the bodies.
        max_body_bytes: most bytes of one body.
        max_bodies_bytes: most bytes of all bodies at a time.
        timeout_s: time for a body to arrive.
        max_upload_bytes: most bytes of one uploaded file.
        upload_timeout_s: time for all of an uploaded file to arrive.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_bodies_bytes: int,
        timeout_s: float,
        max_upload_bytes: int,
        upload_timeout_s: float,
    ) -> None:
        self._app = app
        self.max_body_bytes = max_body_bytes
        self.max_bodies_bytes = max_bodies_bytes
        self.max_upload_bytes = max_upload_bytes
        self.timeout_s = timeout_s
        self.upload_timeout_s = upload_timeout_s
        self.num_bytes = 0  # of all bodies in memory
        self.num_streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "PUT" and route_path(scope).startswith(_FILES)
        if scope["method"] == "POST" and _is_stream(scope):
            await self._pass_stream(scope, receive, send)
            return
        announced = next((v for name, v in scope["headers"] if name == b"content-length"), b"")
        allowed = self.max_upload_bytes if is_upload else self.max_body_bytes
        if announced.isdigit() and int(announced[:20]) > allowed:
            error = self.too_large(int(announced[:20]), is_upload=is_upload)
            await _send_error(error, scope, receive, send)
            return
        body = _Body(self, receive, send, is_upload=is_upload)
        try:
            await self._app(scope, body.receive, body.send)
        finally:
            if not is_upload:
                self.num_bytes -= body.num_bytes

    async def _pass_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a stream, or refuse it if the unfinished rows of all could fill the memory."""
        if self.num_streams >= max(1, self.max_bodies_bytes // _STREAM_BYTES):
            error = BodiesOverloadedError(self.max_bodies_bytes, self.num_streams)
            await _send_error(error, scope, receive, send)
            return
        parts = _Parts(receive, send, self.timeout_s)
        self.num_streams += 1
        try:
            await self._app(scope, parts.receive, parts.send)
        finally:
            self.num_streams -= 1

    def too_large(self, found: int | None, *, is_upload: bool) -> TooLargeError:
        """Return the error for a body of `found` bytes; None if it was not read to its end."""
        if is_upload:
            setting = "DELTABERT_MAX_DELTA_BYTES"
            return TooLargeError("bytes in the file", found, self.max_upload_bytes, setting)
        setting = "DELTABERT_MAX_BODY_BYTES"
        return TooLargeError("bytes in the body", found, self.max_body_bytes, setting)


def _is_stream(scope: Scope) -> bool:
    """Tell if a body is a stream of rows for one task."""
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    is_rows = given.partition(b";")[0].strip().lower() in _STREAMS
    return is_rows and route_path(scope).startswith(_ONE_TASK)


class _Parts:
    """Limits the time for each part of a stream; nothing counts while no part is asked for."""

    def __init__(self, receive: Receive, send: Send, timeout_s: float) -> None:
        self._receive = receive
        self._send = send
        self._timeout_s = timeout_s
        self._is_read = False

    async def receive(self) -> Message:
        """Return the next part; after the last one, any event at any time."""
        if self._is_read:
            return await self._receive()
        timeout = asyncio.timeout(self._timeout_s)
        try:
            async with timeout:
                message = await self._receive()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise BodyTimeoutError(self._timeout_s, is_part=True) from None
        self._is_read = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Close the connection after an answer that begins before the end of the stream."""
        if not self._is_read and message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send(message)


class _Body:
    """A body while it is read; `num_bytes` have arrived."""

    def __init__(
        self, limits: BodyLimitMiddleware, receive: Receive, send: Send, *, is_upload: bool
    ) -> None:
        self.num_bytes = 0
        self._limits = limits
        self._receive = receive
        self._send = send
        self._is_upload = is_upload
        self._deadline: float | None = None  # for the last part, from the first read on
        self._upload_deadline = math.inf  # for all parts of an upload, likewise
        self._is_read = False

    async def receive(self) -> Message:
        """Return the next part of the body; after the last one, any event at any time."""
        if self._is_read:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._deadline is None and self._is_upload:
            self._upload_deadline = now + self._limits.upload_timeout_s
        if self._deadline is None or self._is_upload:
            self._deadline = min(now + self._limits.timeout_s, self._upload_deadline)
        timeout = asyncio.timeout_at(self._deadline)
        try:
            async with timeout:
                message = await self._receive()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._too_slow() from None
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self._is_read = not message.get("more_body", False)
        if self._is_upload:
            if self.num_bytes > self._limits.max_upload_bytes:
                raise self._limits.too_large(None, is_upload=True)
            return message
        self._limits.num_bytes += num_bytes
        if self.num_bytes > self._limits.max_body_bytes:
            raise self._limits.too_large(None, is_upload=False)
        if self._limits.num_bytes > self._limits.max_bodies_bytes:
            raise BodiesOverloadedError(self._limits.max_bodies_bytes)
        return message

    def _too_slow(self) -> BodyTimeoutError:
        if self._deadline != self._upload_deadline:
            return BodyTimeoutError(self._limits.timeout_s)
        setting = "DELTABERT_UPLOAD_TIMEOUT_S"
        return BodyTimeoutError(self._limits.upload_timeout_s, setting)

    async def send(self, message: Message) -> None:
        """Close the connection after an answer to half a body, because the rest may never end."""
        is_half_read = self._deadline is not None and not self._is_read
        if is_half_read and message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send(message)


class LoadSheddingMiddleware:
    """Refuses predictions that would wait too long, from path and headers alone.

    Without it, an overloaded server would spend most of its time reading requests that it then
    refuses. `app.batching.batcher` decides again when it knows the rows.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._refused = _RefusalLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            prediction = prediction_at(scope["path"], scope.get("root_path", ""))
            state, serving = scope["state"], scope["app"].state.serving
            if prediction is not None and isinstance(serving, Serving):
                admit = serving.batcher.admission.admit
                deadline, now = state["deadline"], state["arrived_at"]
                try:
                    admit(prediction.task, 0, 0, deadline=deadline, now=now)
                except OverloadedError as error:
                    state["trace"].route = prediction.route
                    self._refused.note(error)
                    await _send_error(error, scope, receive, send)
                    return
        await self._app(scope, receive, send)
