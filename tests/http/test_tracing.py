"""Spans of a real server process, received as a collector receives them: OTLP over HTTP."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.http.telemetry.tracing import open_tracing
from app.process.settings import SettingsError
from tests.http.server_process import opener, url_of

pytestmark = pytest.mark.slow
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """A receiver of spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.receive(self.path, dict(self.headers), body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        self.headers.append(headers)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = resource.resource.attributes
            self.resources.append({each.key: each.value.string_value for each in attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def wait_for(self, num_spans: int) -> list[Any]:
        for _ in range(200):
            if len(self.spans) >= num_spans:
                break
            time.sleep(0.05)
        return self.spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    one = Collector()
    yield one
    one.server.shutdown()
    one.server.server_close()


def ask(url: str, body: Any = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | headers
    try:
        return opener.open(urllib.request.Request(url, data, sent), timeout=30)
    except urllib.error.HTTPError as error:
        return error


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_a_span_with_its_stages(
    run_server: Callable[..., Any], collector: Collector
) -> None:
    given = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=a",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "DELTABERT_LOG_FORMAT": "json",
        "DELTABERT_MAX_SLOTS": "1",
    }
    with run_server(**given) as server:
        url = url_of(server)
        body = {"inputs": ["a good film", "bad"], "strategy": "layernorm"}
        parent = f"00-{TRACE}-{PARENT}-01"
        answer = ask(f"{url}/predict/toy2", body, traceparent=parent, tracestate="a=b")
        answer.read()
        assert answer.headers["traceresponse"].startswith(f"00-{TRACE}-")
        spans = {span.name: span for span in collector.wait_for(7)}
        log = [json.loads(line) for line in server.lines if "POST /predict" in line]
        server.process.terminate()
        assert server.wait() == 0
    names = {"read", "tokenize", "load", "queue", "compute", "write"}
    assert spans.keys() == names | {"POST /predict/{task}"}
    request = spans["POST /predict/{task}"]
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == PARENT
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert log[0]["trace_id"] == TRACE
    found = attributes(request)
    assert found["deltabert.request_id"] == answer.headers["x-request-id"]
    assert (found["http.response.status_code"], found["deltabert.rows"]) == (200, 2)
    for name in names:
        child = spans[name]
        assert child.parent_span_id == request.span_id
        assert request.start_time_unix_nano - 10**6 <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= request.end_time_unix_nano + 10**6
    batch = attributes(spans["compute"])
    assert batch["deltabert.batch.id"] >= 1
    assert batch["deltabert.batch.rows"] == 2
    assert batch["deltabert.batch.tokens"] == found["deltabert.tokens"]
    assert collector.resources[0]["service.name"] == "deltabert"
    assert collector.headers[0]["x-team"] == "a"


def test_errors_are_spans_and_probes_are_not(
    run_server: Callable[..., Any], collector: Collector
) -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
    given["DELTABERT_ROOT_PATH"] = "/base"
    with run_server(**given) as server:
        url = url_of(server)
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert "traceresponse" not in ask(f"{url}{path}").headers
            assert "traceresponse" not in ask(f"{url}/base{path}").headers, "a proxy may leave it"
        ask(f"{url}/predict/nope", {"inputs": "x"}, traceparent="garbage").read()
        server.process.terminate()
        assert server.wait() == 0, "the end sends what is left"
    by_name = {span.name: span for span in collector.spans}
    assert by_name.keys() == {"read", "POST /predict/{task}"}
    assert attributes(by_name["POST /predict/{task}"])["error.type"] == "not_found"
    assert by_name["POST /predict/{task}"].parent_span_id == b""
    assert collector.resources[0]["service.name"] == "mine"


def test_a_collector_that_is_down_harms_nothing(run_server: Callable[..., Any]) -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with run_server(**given) as server:
        url = url_of(server)
        for _ in range(5):
            assert ask(f"{url}/predict/toy2", {"inputs": "a film"}).status == 200
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        assert server.wait() == 0
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"OTEL_SERVICE_NAME": "a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_no_variable_no_tracing(given: dict[str, str]) -> None:
    assert open_tracing(given, "1") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is '{value}'"):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", name: value}, "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "999999"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_a_value_that_the_sdk_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match="OpenTelemetry can't use its variables: "):
        open_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "1")


PROGRAM = """
import sys
{first}
from app.main import create_app
from app.process.settings import Settings, SettingsError
try:
    create_app(Settings())
except SettingsError as error:
    print(error)
loaded = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")
print(*(name for name in sys.modules if name.startswith(loaded)))
"""


def run_program(first: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first)],
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": "."} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_off_nothing_of_it_is_imported() -> None:
    """FastAPI imports the API of OpenTelemetry by itself, which does nothing without an SDK."""
    assert run_program("") == [""]


def test_a_missing_extra_is_one_sentence() -> None:
    missing = "sys.modules['opentelemetry.sdk.trace'] = None"
    error, _ = run_program(missing, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert error.startswith(
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed"
    )
    assert "pip install '.[otel]'" in error
