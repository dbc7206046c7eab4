"""What a request body may be: its size, its time, its type, its encoding.

FastAPI's own size limit answers in plain text, so that clients would meet a second error shape.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import (
    BodiesOverloadedError,
    BodyTimeoutError,
    TooLargeError,
    UnsupportedBodyError,
    error_response,
)
from app.shortcut import ShortcutRoute

_JSON_TYPE = re.compile(r"application/([^/]+\+)?json")


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


class JsonRoute(ShortcutRoute):
    """A route that takes uncompressed JSON only and says so, before anything is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the check in front of everything that reads."""
        handle = super().get_route_handler()

        async def check_then_handle(request: Request) -> Response:
            _check_headers(request.headers)
            return await handle(request)

        return check_then_handle


def _check_headers(headers: Headers) -> None:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedBodyError(
            f"Content-Encoding {encoding[:64]!r} is not supported; send the body uncompressed"
        )
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON_TYPE.fullmatch(media_type):
        raise UnsupportedBodyError(
            f"Content-Type is {media_type[:64] or 'missing'!r}; "
            "send the header Content-Type: application/json"
        )
