"""Runs the server process: settings, socket, signals and uvicorn. Read `app.main` next.

Exit status: 0 if stopped by a signal, 1 if it could not start, 2 if the settings cannot be used.
Tested by tests/http/test_live_server.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from app.connection import Connection, ConnectionLimits
from app.http.context import Serving
from app.main import create_app, open_store, pinned_records
from app.process import (
    configure_logging,
    logged,
    prepare_process,
    run_in_own_thread,
    settle_process,
)
from app.settings import PREFIX, Settings, SettingsError, load_settings
from deltas import DeltaError, load_backbone, pick_device

logger = logging.getLogger("app")


class _Server(uvicorn.Server):
    """Uvicorn with the app's log line at the start and its draining at the end."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settle_process()
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Uvicorn tells an app to shut down after its last request; this app ends them itself.
        app: Any = self.config.app
        serving, settings = app.state.serving, app.state.settings
        draining = None
        if isinstance(serving, Serving):
            draining = asyncio.create_task(serving.batcher.stop(settings.shutdown_timeout_s))
        await super().shutdown(sockets)
        if draining is not None:
            await draining


class _StartError(Exception):
    """The server cannot be started; the message is all that a user needs."""


def main() -> int:
    """Run the server; returns the exit status."""
    try:
        settings = load_settings()
    except SettingsError as error:
        return _report(error)
    configure_logging(settings.log_format, settings.log_level)
    # Uvicorn raises the signal again once it is done. A requested stop is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    prepare_process()
    try:
        pick_device(settings.device)
        with _listen(settings) as listener:
            with logged("loaded the backbone"):
                backbone = run_in_own_thread(lambda: load_backbone(settings.backbone))
            if settings.pinned:  # a bad name is one sentence here, and a traceback later
                pinned_records(open_store(settings, backbone), settings)
            _serve(create_app(settings, backbone=backbone), listener, settings)
    except SettingsError as error:
        return _report(error)
    except (DeltaError, _StartError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _report(error: SettingsError) -> int:
    sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
    return 2


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything slow is done."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only on sockets that name TCP as their protocol. With it,
    # a client that keeps its connection waits 40 ms for the second part of each answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        where = f"port {settings.port} of {settings.host}"
        if error.errno == errno.EADDRINUSE:
            problem = f"{where} is in use by another program; set {PREFIX}PORT to a free port"
        else:
            problem = f"cannot listen on {where}: {error.strerror or error}"
        raise _StartError(problem) from error
    return listener


def _serve(app: Any, listener: socket.socket, settings: Settings) -> None:
    try:
        _Server(_config(app, settings)).run(sockets=[listener])
    except OSError as error:  # another server took the port while this one was loading
        raise _StartError(f"cannot listen on port {settings.port}: {error.strerror}") from error
    except SystemExit as error:
        if error.code:  # uvicorn exits like this when the app could not be started
            raise _StartError("the server could not start; see the log above") from error
        raise


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    limits = ConnectionLimits(
        max_head_bytes=settings.max_head_bytes,
        timeout_s=settings.connection_timeout_s,
        max_connections=settings.max_connections,
    )
    return uvicorn.Config(
        app,
        http=cast(type[asyncio.Protocol], partial(Connection, limits)),
        ws="none",  # an offer of WebSocket is ignored like all others
        timeout_keep_alive=settings.keep_alive_s,
        lifespan="on",
        log_config=None,
        access_log=False,
        # The batcher answers everything within its own timeout; this one is for stuck connections.
        timeout_graceful_shutdown=round(settings.shutdown_timeout_s) + 5,
    )


def _stop(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
