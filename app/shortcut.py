"""A way past FastAPI's reading of a request, for requests in which it would find nothing wrong.

FastAPI solves the dependencies of each request anew, which takes as long as everything else that
happens to a row before the engine. A request whose body is what the route's model takes, and whose
path and headers are as plain as can be, is handed to the endpoint directly. All others go FastAPI's
way, so that there is one owner of every error; the documentation is FastAPI's in any case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from app.serving import get_serving

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
