"""Runs the server process: socket, signals and uvicorn. Read `app.main` next.

The first signal stops the server gracefully, the second one at once; before the server listens the
first one does. Exit status: 0 if stopped by a signal, 1 if it could not start or can answer no
more, 2 if the settings cannot be used. Tested by tests/http/test_stops.py and
tests/http/test_live_server.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from fastapi import FastAPI

from app.errors import NotReadyError
from app.main import create_app, log_store, open_keyring, open_store, pinned_records
from app.process.lifetime import (
    leave,
    prepare_process,
    run_in_own_thread,
    settle_process,
    stop_at_once,
)
from app.process.logs import logged
from app.process.settings import PREFIX, Settings, SettingsError
from app.server.certificate import Certificate
from app.server.connection import Connection, ConnectionLimits
from deltas import DeltaError, load_backbone, pick_device

logger = logging.getLogger("app")

_SPARE_S = 3  # beyond DELTABERT_SHUTDOWN_TIMEOUT_S; whatever still hangs then is left behind
_ONE_SIGNAL_S = 0.2  # two signals within this time are one; `timeout` of coreutils sends two


class _Server(uvicorn.Server):
    """Uvicorn with the app's log lines, its handling of signals, and its draining at the end."""

    def __init__(
        self,
        config: uvicorn.Config,
        shutdown_timeout_s: float,
        certificate: Certificate | None = None,
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._watching: asyncio.Task[None] | None = None  # a reference, or it would be collected
        self._shutdown_timeout_s = shutdown_timeout_s
        self._signal: signal.Signals | None = None
        self._signalled_at = 0.0
        self.has_failed = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; uvicorn's own handler would wait for a start that takes a minute."""
        if not self.started:
            stop_at_once(sig, frame)
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._signalled_at = signal.Signals(sig), now
            self.should_exit = True
            # Whatever hangs at the end, the process does not. SIGALRM interrupts it in this thread.
            signal.signal(signal.SIGALRM, stop_at_once)
            signal.alarm(math.ceil(self._shutdown_timeout_s) + _SPARE_S)
        elif now - self._signalled_at > _ONE_SIGNAL_S:
            stop_at_once(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settle_process()
        # The terminal of a server has closed. `nohup` has the signal ignored, and that stays so.
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self.handle_exit)
        certificate = self._certificate
        if certificate is not None and self.config.ssl is not None:
            self._watching = asyncio.create_task(certificate.watch(self.config.ssl))
            metrics = cast(Any, self.config.app).state.metrics
            metrics.watch_file("certificate", lambda: certificate.is_stale)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            shown = f"[{host}]" if ":" in host else host
            logger.info("listening on %s://%s:%d", scheme, shown, port)

    async def on_tick(self, counter: int) -> bool:
        """Tell uvicorn whether to stop; called ten times a second."""
        self.has_failed = self._is_dead()
        return await super().on_tick(counter) or self.has_failed

    def _is_dead(self) -> bool:
        serving = cast(Any, self.config.app).state.serving
        try:
            serving.batcher.check_alive()
        except NotReadyError:
            return True
        return False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Uvicorn tells an app to shut down after its last request; this app ends them itself.
        started, why = time.monotonic(), self._signal.name if self._signal else "no batch can run"
        logger.info("%s: stopping within %g s", why, self._shutdown_timeout_s)
        batcher = cast(Any, self.config.app).state.serving.batcher
        draining = asyncio.create_task(batcher.stop(self._shutdown_timeout_s))
        await super().shutdown(sockets)
        await draining
        logger.info("stopped after %.2f s", time.monotonic() - started)


class StartError(Exception):
    """The server cannot be started; the message is all that a user needs."""


def main(settings: Settings, *, only_check: bool = False) -> NoReturn:
    """Run the server, and end the process with its exit status.

    Args:
        settings: settings of the server.
        only_check: whether to load backbone, keys and deltas, and to serve nothing.
    """
    prepare_process()
    try:
        status = _run(settings, only_check=only_check)
    except Exception:
        logger.exception("the server failed")
        status = 1
    leave(status)


def _run(settings: Settings, *, only_check: bool) -> int:
    """Load everything and serve until the end; returns the exit status."""
    try:
        pick_device(settings.device)
        certificate = _certificate(settings)
        open_keyring(settings)  # bad keys are told before anything slow is done
        if only_check:  # beside a server that has the port
            log_store(_load(settings).state.store)
            sys.stdout.write("the server can start with these settings\n")
            return 0
        with listen(settings) as listener:
            return _serve(_load(settings), listener, settings, certificate)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (DeltaError, StartError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _load(settings: Settings) -> FastAPI:
    """Load the backbone, find the deltas, and make the app.

    A bad name or a remote folder that is down is one sentence here, a traceback later.
    """
    with logged("loaded the backbone"):
        backbone = run_in_own_thread(lambda: load_backbone(settings.backbone))
    store = run_in_own_thread(lambda: open_store(settings, backbone))
    pinned_records(store, settings)
    return create_app(settings, backbone=backbone, store=store)


def _certificate(settings: Settings) -> Certificate | None:
    """Load certificate and key, because uvicorn would end with a traceback on wrong ones."""
    if settings.ssl_certfile is None or settings.ssl_keyfile is None:
        return None
    return Certificate(settings.ssl_certfile, settings.ssl_keyfile)


def listen(settings: Settings) -> socket.socket:
    """Take the port of the settings.

    Raises:
        StartError: another program has it, or it can't be used.
    """
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
        raise StartError(problem) from error
    return listener


def _serve(
    app: FastAPI, listener: socket.socket, settings: Settings, certificate: Certificate | None
) -> int:
    server = _Server(_config(app, settings), settings.shutdown_timeout_s, certificate)
    try:
        server.run(sockets=[listener])
    except OSError as error:  # another server took the port while this one was loading
        raise StartError(f"cannot listen on port {settings.port}: {error.strerror}") from error
    except SystemExit as error:
        if error.code:  # uvicorn exits like this when the app could not be started
            raise StartError("the server could not start; see the log above") from error
        raise
    return int(server.has_failed)


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    limits = ConnectionLimits(
        max_head_bytes=settings.max_head_bytes,
        timeout_s=settings.connection_timeout_s,
        max_connections=settings.max_connections,
        on_error=app.state.metrics.on_error,
    )
    return uvicorn.Config(
        app,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        http=cast(type[asyncio.Protocol], partial(Connection, limits)),
        ws="none",  # an offer of WebSocket is ignored like all others
        timeout_keep_alive=settings.keep_alive_s,
        lifespan="on",
        log_config=None,
        access_log=False,
        # The batcher answers everything within its own timeout; this one is for stuck connections.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s) + 1,
    )
