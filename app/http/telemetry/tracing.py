"""Sends spans of requests to a collector by OpenTelemetry, if OpenTelemetry's variables ask for it.

Otherwise nothing of its SDK is imported, and no middleware is added. A request's span begins
when it arrives; the spans of its stages are made at its end, from the times that
`app.pipeline.Trace` has in any case. So rows go the same way with and without tracing. Tested by
tests/http/test_tracing.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.pipeline import Stage, Trace
from app.process.settings import SettingsError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_PROBES = ("/health/", "/metrics")
_CLOSE_S = 2.0


def open_tracing(environ: Mapping[str, str], version: str) -> Tracing | None:
    """Return the tracing that the variables of OpenTelemetry ask for; None if they do not.

    Args:
        environ: environment of the process.
        version: version of the server.

    Raises:
        SettingsError: a variable asks for what the server can't do, or OpenTelemetry is missing.
    """
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    exporter = given.get(_EXPORTER, "").lower()
    asked_by = [name for name in _ENDPOINTS if name in given] + [_EXPORTER] * bool(exporter)
    is_off = exporter == "none" or given.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or not asked_by:
        return None
    problems = [
        f"{name} is {given[name]!r}; this server sends spans by {allowed!r} only"
        for name, allowed in ((_EXPORTER, "otlp"), *((name, _PROTOCOL) for name in _PROTOCOLS))
        if given.get(name, allowed).lower() != allowed
    ]
    if problems:
        raise SettingsError(problems)
    try:
        return Tracing(given, version)
    except ImportError as error:
        raise SettingsError(
            [
                f"{asked_by[0]} is set, but OpenTelemetry is not installed ({error.name}); run "
                f"pip install '.[otel]', or unset the variable"
            ]
        ) from error
    except ValueError as error:
        raise SettingsError([f"OpenTelemetry can't use its variables: {error}"]) from error


class Tracing:
    """The tracer of a server and what sends its spans.

    Args:
        environ: variables of OpenTelemetry; its SDK reads the rest of them from the process.
        version: version of the server.
    """

    def __init__(self, environ: Mapping[str, str], version: str) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        described = {"service.version": version}
        attributes = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if "OTEL_SERVICE_NAME" not in environ and "service.name=" not in attributes:
            described["service.name"] = "deltabert"
        self._provider = TracerProvider(resource=Resource.create(described), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("deltabert", version)
        self._api = trace
        self._extract = propagate.extract

    def begin(self, scope: Scope) -> Any:
        """Begin the span of a request, as a part of its client's trace if it names one."""
        names = ("traceparent", "tracestate", "baggage")
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name.decode("latin-1") in names
        }
        kind = self._api.SpanKind.SERVER
        return self._tracer.start_span(scope["method"], self._extract(carrier), kind)

    def end(self, span: Any, method: str, status: int, state: Mapping[str, Any]) -> None:
        """End the span of a request, with a span for each of its stages."""
        if span.is_recording():
            trace: Trace = state["trace"]
            span.update_name(f"{method} {trace.route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": trace.route,
                    "http.response.status_code": status,
                    "deltabert.request_id": state["request_id"],
                    "deltabert.rows": trace.num_rows,
                    "deltabert.tokens": sum(trace.tokens),
                }
            )
            if trace.code is not None:
                span.set_attribute("error.type", trace.code)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                span.set_status(self._api.StatusCode.ERROR)
            parent = self._api.set_span_in_context(span)
            offset_ns = time.time_ns() - time.monotonic_ns()
            for stage in trace.stages:
                began_ns, ended_ns = (
                    offset_ns + int(at * 1e9) for at in (stage.began_at, stage.ended_at)
                )
                child = self._tracer.start_span(
                    stage.name, parent, attributes=_attributes(stage), start_time=began_ns
                )
                child.end(ended_ns)
        span.end()

    def close(self) -> None:
        """Send the spans that are left, for at most two seconds."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def _attributes(stage: Stage) -> dict[str, int]:
    if stage.batch is None:
        return {}
    return {
        "deltabert.batch.id": stage.batch.number,
        "deltabert.batch.rows": stage.batch.num_rows,
        "deltabert.batch.tokens": stage.batch.num_tokens,
    }


class TracingMiddleware:
    """Makes a span of each request but the probes, and tells the client its id.

    Args:
        app: app to surround, with `RequestContextMiddleware` as its outermost part.
        tracing: makes the spans.
        root_path: path prefix of the server; empty for none, or for that of uvicorn's option.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing, root_path: str = "") -> None:
        self._app = app
        self._tracing = tracing
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        root = self._root_path or scope.get("root_path", "")
        is_http = scope["type"] == "http"
        if not is_http or scope["path"].removeprefix(root).startswith(_PROBES):
            await self._app(scope, receive, send)
            return
        span = self._tracing.begin(scope)
        ids = span.get_span_context()
        trace_id = f"{ids.trace_id:032x}"
        header = f"00-{trace_id}-{ids.span_id:016x}-{ids.trace_flags:02x}".encode()
        state = scope.setdefault("state", {})
        state["trace_id"] = trace_id
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"traceresponse", header)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        finally:
            self._tracing.end(span, scope["method"], status, state)
