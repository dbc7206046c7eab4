"""A way past FastAPI's reading of a request, for requests in which it would find nothing wrong.

FastAPI solves the dependencies of each request anew, which takes as long as everything else that
happens to a row before the engine. A request whose body is what the route's model takes, and whose
path and headers are as plain as can be, is handed to the endpoint directly. All others go FastAPI's
way, so that there is one owner of every error; the documentation is FastAPI's in any case.

Stops working on an answer once nobody waits for it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.errors import (
    ClientGoneError,
    UnsupportedBodyError,
)
from app.http.context import get_serving

_MAX_PARAMETER = 256
_TIMEOUT = "x-request-timeout-ms"


class ShortcutRoute(APIRoute):
    """For endpoints `(request, body: Model, serving, **path_parameters)` that make a Response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Try the shortcut first."""
        handle = super().get_route_handler()
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def read_then_handle(request: Request) -> Response:
            body = await read_plain(request, model)
            if body is None:
                return await handle(request)
            serving = await get_serving(request)
            return await endpoint(
                request=request, body=body, serving=serving, **request.path_params
            )

        return read_then_handle


async def read_plain(request: Request, model: type[BaseModel]) -> BaseModel | None:
    """The body; None if anything at all is out of the ordinary."""
    if not request.headers.get(_TIMEOUT, "1").lstrip("0").isdecimal():
        return None
    if any(len(value) > _MAX_PARAMETER for value in request.path_params.values()):
        return None
    try:
        return model.model_validate(json.loads(await request.body()))
    except (ValueError, RecursionError, ClientDisconnect):
        return None


_JSON_TYPE = re.compile(r"application/([^/]+\+)?json")


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


T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or cancel it when the client closes the connection.

    Args:
        request: its body must have been read: the next event is then the disconnect.
        work: what to do.

    Raises:
        ClientGoneError: the client left first.
    """
    task = asyncio.current_task()
    assert task is not None  # it runs in a coroutine
    watch = asyncio.create_task(_cancel_on_disconnect(request, task))
    try:
        return await work
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled() and task.uncancel() == 0:
            raise ClientGoneError("the client closed the connection") from None
        raise  # it is the server that stops
    finally:
        watch.cancel()


async def _cancel_on_disconnect(request: Request, task: asyncio.Task[Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()
