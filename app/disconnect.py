"""Stops working on an answer once nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from app.errors import ClientGoneError

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
