"""What a request body may be: its size, its type, its encoding; all checked before it is read.

FastAPI's own size limit answers in plain text, so that clients would meet a second error shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooLargeError, UnsupportedBodyError, error_response
from app.shortcut import ShortcutRoute

_JSON_TYPE = re.compile(r"application/([^/]+\+)?json")


class _BodyOverflowError(HTTPException):
    """Raised while FastAPI reads a body, which lets no other kind of exception through."""

    def __init__(self) -> None:
        super().__init__(413)


class BodyLimit:
    """Refuses bodies that announce too many bytes; stops reading those that send them anyway."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

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
        num_bytes = 0

        async def receive_counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise _BodyOverflowError from self._too_large(None)
            return message

        await self._app(scope, receive_counted, send)

    def _too_large(self, found: int | None) -> TooLargeError:
        setting = "DELTABERT_MAX_BODY_BYTES"
        return TooLargeError("bytes in the body", found, self._max_body_bytes, setting)


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
