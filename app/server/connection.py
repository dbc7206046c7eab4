"""Limits the bytes, the time and the number of connections before and between requests.

`Connection` is uvicorn's protocol over httptools with the limits that uvicorn leaves out: bytes and
time of a request's head, number of connections, clients that do not read. Everything from the body
on belongs to the app; read `app.http.middleware` next. Tested by tests/http/test_connections.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from app.errors import (
    STOPPING,
    HeadTimeoutError,
    HeadTooLargeError,
    MalformedRequestError,
    NotReadyError,
    TooManyConnectionsError,
    error_response,
)
from app.process.logs import request_id_var

logger = logging.getLogger(__name__)

_SPARE_DESCRIPTORS = 16  # for files of deltas, and for connections that are being refused
_SPARE_CONNECTIONS = 8  # beyond the limit, for health checks alone
_HEALTH = b"/health/"
# A client that still sends would lose the answer if the connection closed at once. So its bytes are
# dropped, as many as an honest client may send before it reads.
_LINGER_S = 1.0
_LINGER_HEAD_BYTES = 2**20
_LINGER_BODY_BYTES = 64 * 2**20
_ASK_EVERY_S = 0.2
# Requests of a connection that wait for the answers to earlier ones. One read may bring thousands,
# of which each takes 4 kB of memory and the event loop's time.
_MAX_PIPELINED = 32
_LOG_EVERY_S = 10.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ConnectionLimits:
    """The limits of all connections, and the connections that wait for a request.

    Args:
        max_head_bytes: most bytes of request line and headers.
        timeout_s: time for a head to arrive, and for a client to read some of its answer.
        max_connections: most connections at a time; fewer if the process has too few descriptors.
        on_error: called with the code of each error that answers bytes that are no request.
    """

    def __init__(
        self,
        *,
        max_head_bytes: int,
        timeout_s: float,
        max_connections: int,
        on_error: Callable[[str], None],
    ) -> None:
        self.max_head_bytes = max_head_bytes
        self.timeout_s = timeout_s
        self.on_error = on_error
        self.max_connections = min(max_connections, _descriptors_left())
        if self.max_connections < max_connections:
            logger.warning(
                "at most %d connections instead of %d (DELTABERT_MAX_CONNECTIONS), because the "
                "process may open few files; raise the limit with ulimit -n",
                self.max_connections,
                max_connections,
            )
        self.waiting: dict[Connection, None] = {}  # the longest wait comes first
        self._num_closed = 0
        self._logged_at = -math.inf

    def admit(self, connection: Connection, num_open: int) -> bool:
        """Admit a new connection, in place of the one that has waited longest for a request.

        Args:
            connection: the new connection.
            num_open: number of open connections with the new one.

        Returns:
            False if every other connection has a request, so that this one may only ask for health.
        """
        is_full = num_open > self.max_connections
        longest = next(iter(self.waiting), None)
        if is_full:
            closed = longest
            if closed is None and num_open > self.max_connections + _SPARE_CONNECTIONS:
                closed = connection
            if closed is not None:
                self.waiting.pop(closed, None)
                closed.transport.abort()
            self.log_full()
        return not is_full or longest is not None

    def log_full(self) -> None:
        """Log now and then that connections are refused; a line for each would be a flood."""
        self._num_closed += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            logger.warning(
                "all %d connections are in use (DELTABERT_MAX_CONNECTIONS); closed or refused %d "
                "since the last such line, those that had waited longest for a request first",
                self.max_connections,
                self._num_closed,
            )
            self._num_closed = 0
            self._logged_at = now


def _descriptors_left() -> int:
    """Return the number of connections that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 2**31
    return max(1, soft - len(list(Path("/dev/fd").iterdir())) - _SPARE_DESCRIPTORS)


class Connection(HttpToolsProtocol):
    """One connection of a client.

    Args:
        limits: limits of all connections.
        arguments: arguments of uvicorn's protocol.
    """

    def __init__(self, limits: ConnectionLimits, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._limits = limits
        self._head_bytes = 0  # bytes since the last end of a head, part of a body, or end of one
        self._has_begun = False  # some of a head has arrived
        self._is_in_head = False  # else headers are trailers, which stand behind the body
        self._is_refused = False
        self._dropped_bytes = 0  # of what no one reads, since the last head
        self._is_too_many = False  # only health is answered
        self._answered: RequestResponseCycle | None = None  # the oldest request without its answer
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._is_too_many = not self._limits.admit(self, len(self.connections))
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the app that no answer can be sent any more."""
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._limits.waiting.pop(self, None)
        self.pipeline.clear()
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, in parts that end where a head would be too large."""
        self._unset_keepalive_if_required()
        position = 0
        while position < len(data) and not self._is_refused and self.parser is not None:
            left = self._limits.max_head_bytes - self._head_bytes
            if left == 0:
                self._refuse(HeadTooLargeError(self._limits.max_head_bytes))
                return
            part = data[position : position + left]
            self._head_bytes += len(part)
            position += self._parse(part)
        if self._is_refused:
            self._drop(len(data) - position, _LINGER_HEAD_BYTES)
        elif not self._is_answering():
            self._wait_for_head()

    def _drop(self, num_bytes: int, limit: int) -> None:
        """Drop bytes that come after their answer; beyond the limit, do not read them at all.

        The client then has to stop, and the connection closes with its timer.
        """
        self._dropped_bytes += num_bytes
        if self._dropped_bytes > limit:
            self.flow.pause_reading()

    def _parse(self, part: bytes) -> int:
        """Parse a part; returns the number of its bytes that are done."""
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            done: int = upgrade.args[0]
            return done
        except httptools.HttpParserError as error:
            self._refuse_because(error)
        return len(part)

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its offer of another protocol, which the server may ignore.

        The parser takes all that follows such an offer for the other protocol, also the body.
        """
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        try:
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:  # CONNECT
            self._refuse_because(error)

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._has_begun = self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer is dropped, since keys and proxies look at the head alone."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand a request to the app."""
        self._head_bytes = self._dropped_bytes = 0
        self._is_in_head = False
        if self.parser.should_upgrade():
            return
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such a client takes an interim answer for its own
        is_full = self._is_too_many and len(self.connections) > self._limits.max_connections
        if is_full and _HEALTH not in self.url.partition(b"?")[0]:
            self._limits.log_full()
            raise TooManyConnectionsError(self._limits.max_connections)
        if len(self.pipeline) >= _MAX_PIPELINED:  # the last of them will close the connection
            raise MalformedRequestError
        self._has_begun = False
        self._limits.waiting.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a part of a body to the app."""
        self._head_bytes = 0
        if self.cycle.response_complete:
            self._drop(len(body), _LINGER_BODY_BYTES)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Tell the app that the body is complete."""
        self._head_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Begin to wait for the next head, unless it is there."""
        super().on_response_complete()
        if not self._is_answering():
            self._limits.waiting[self] = None
        if self.transport.get_write_buffer_size():
            self._wait_for_reading()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or not (
            self._answered is None or self._answered.response_complete
        )

    def _wait_for_head(self) -> None:
        """Give the next head a limited time, from its first byte or the connection's opening on."""
        self._limits.waiting.setdefault(self)
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.timeout_s, self._give_up_head)

    def _give_up_head(self) -> None:
        if self._has_begun:
            self._refuse(HeadTimeoutError(self._limits.timeout_s))
        else:
            self.transport.abort()

    def _refuse_because(self, error: Exception) -> None:
        cause = error.__context__
        if isinstance(cause, TooManyConnectionsError):
            self._refuse(cause)
        elif isinstance(cause, (MemoryError, OSError, RuntimeError)):  # the fault is the server's
            logger.error("a request could not be read", exc_info=cause)
            self._refuse(cause)
        else:
            self._refuse(MalformedRequestError())

    def _refuse(self, error: Exception) -> None:
        """Answer bytes that are no request with an error, and close the connection.

        Requests that came before it are answered first. The client then gets no answer to the
        rest, but learns from `Connection: close` that there is none.
        """
        self._is_refused = True
        request_id = uuid.uuid4().hex
        token = request_id_var.set(request_id)
        logger.debug("closing a connection: %s", error)
        request_id_var.reset(token)
        is_body_broken = self.cycle is not None and self.cycle.more_body
        if is_body_broken and self.pipeline and self._answered is not None:
            self.pipeline.popleft()  # the newest, which has no end
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answered
            is_body_broken = False
        if self._is_answering() and not (is_body_broken and not self.cycle.response_started):
            self.cycle.keep_alive = False
            return
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        response = error_response(error, request_id)
        self._limits.on_error(response.code)
        self._write(response, request_id)
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_S, self.transport.abort)

    def shutdown(self) -> None:
        """Refuse a request that has not arrived yet, when the server stops; answer all others."""
        is_partial = self.cycle is not None and self.cycle.more_body
        if not self._is_refused and (self._has_begun or (is_partial and self._is_answering())):
            self._refuse(NotReadyError(STOPPING))
        else:
            super().shutdown()

    def _write(self, response: Response, request_id: str) -> None:
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % header for header in headers]
        head = STATUS_LINE[response.status_code] + b"".join(lines) + b"\r\n"
        self.transport.write(head + bytes(response.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for its answers if the client has finished sending."""
        # TLS has no half-closed connections: the client can read no answer any more.
        if not self._is_answering() or self.cycle.more_body or self.scheme == "https":
            return False
        self.cycle.keep_alive = False
        self._ask_if_gone()
        return True

    def _ask_if_gone(self) -> None:
        """Write an interim answer, because only a write tells a finished client from one gone."""
        cycle = self.cycle
        is_alone = cycle is self._answered and cycle.scope["http_version"] == "1.1"
        if is_alone and not cycle.response_started and not self.transport.is_closing():
            self.transport.write(_CONTINUE)
            self.loop.call_later(_ASK_EVERY_S, self._ask_if_gone)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        """Stop to wait for the client to read."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _wait_for_reading(self) -> None:
        if self._unread_timer is None:
            unread = self.transport.get_write_buffer_size()
            self._unread_timer = self.loop.call_later(
                self._limits.timeout_s, self._give_up_unread, unread
            )

    def _give_up_unread(self, before: int) -> None:
        """Close the connection if the client has read nothing, or else wait again."""
        self._unread_timer = None
        unread = self.transport.get_write_buffer_size()
        if unread >= before > 0:
            self.transport.abort()
        elif unread:
            self._wait_for_reading()
