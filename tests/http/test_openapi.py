"""The OpenAPI document is complete, and every example in it works."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.process.settings import Settings
from deltas import TaskSpec


@pytest.fixture(scope="module")
def schema(client: TestClient) -> dict[str, Any]:
    """The schema of the running app."""
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


STATUSES = {200, 400, 404, 408, 413, 415, 422, 429, 500, 503, 504}
PREDICTIONS_FOR_CLIENTS = {
    ("post", "/hf/{task}"),
    ("post", "/hf/{task}/{strategy}"),
    ("post", "/tei/{task}/predict"),
    ("post", "/v2/models/{model}/infer"),
    ("post", "/v2/models/{model}/versions/{version}/infer"),
    ("post", "/classify"),
    ("post", "/invocations"),
}
CLIENTS = PREDICTIONS_FOR_CLIENTS | {
    ("get", "/tei/{task}/info"),
    ("get", "/tei/{task}/health"),
    ("get", "/v2"),
    ("get", "/v2/health/live"),
    ("get", "/v2/health/ready"),
    ("get", "/v2/models/{model}"),
    ("get", "/v2/models/{model}/ready"),
    ("get", "/v2/models/{model}/versions/{version}"),
    ("get", "/v2/models/{model}/versions/{version}/ready"),
    ("post", "/v2/repository/index"),
}
ERRORS_OF_CLIENTS = {
    "hf": "HuggingFaceError",
    "tei": "TeiError",
    "v2": "OpenInferenceError",
    "classify": "OpenAiError",
    "invocations": "MlflowError",
}


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of every route."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def examples_of(holder: dict[str, Any]) -> dict[str, Any]:
    return {key: example["value"] for key, example in holder.get("examples", {}).items()}


def calls(method: str, path: str, operation: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every example as (method, filled-in path, body); equal keys belong together."""
    parameters = operation.get("parameters", [])
    by_name = {item["name"]: examples_of(item) for item in parameters if item["in"] != "header"}
    content = operation.get("requestBody", {}).get("content", {})
    bodies = examples_of(content.get("application/json", {}))
    keys = set(bodies).union(*by_name.values()) or {""}
    for key in sorted(keys):
        filled = path
        for name, examples in by_name.items():
            filled = filled.replace(f"{{{name}}}", examples.get(key, ""))
        query = {
            item["name"]: by_name[item["name"]][key]
            for item in parameters
            if item["in"] == "query" and key in by_name[item["name"]]
        }
        filled += f"?{urlencode(query)}" if query else ""
        yield method, filled, bodies.get(key)


def test_every_example_works(
    client: TestClient, schema: dict[str, Any], toy_tasks: dict[str, TaskSpec]
) -> None:
    sent = []
    for operation in operations(schema):
        for method, path, body in calls(*operation):
            assert "{" not in path, f"{path} has a parameter without an example"
            response = client.request(method, path, json=body)
            assert response.status_code == 200, f"{method} {path} {body}: {response.text}"
            sent.append((method, path))
    for task in toy_tasks:
        assert ("post", f"/predict/{task}") in sent
        assert ("post", f"/explain/{task}") in sent
        assert any(path.startswith(f"/deltas/{task}/bitfit?version=") for _, path in sent)
        for path in (f"/hf/{task}/bitfit", f"/v2/models/{task}/infer", f"/invocations?task={task}"):
            assert ("post", path) in sent
    assert sent.count(("post", "/predict")) == 3


def test_every_route_is_documented(schema: dict[str, Any]) -> None:
    found = {(method, path) for method, path, _ in operations(schema)}
    assert found == {
        ("post", "/predict/{task}"),
        ("post", "/predict"),
        ("post", "/explain/{task}"),
        ("get", "/tasks"),
        ("get", "/deltas"),
        ("get", "/deltas/{task}/{strategy}"),
        ("get", "/deltas/{task}/{strategy}/norms"),
        ("get", "/deltas/{task}/{strategy}/predictions"),
        ("get", "/benchmark"),
        ("get", "/"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
        ("get", "/metrics"),
        *CLIENTS,
    }
    for method, path, operation in operations(schema):
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path
        if method == "post" and path.startswith("/predict"):
            assert set(map(int, operation["responses"])) == STATUSES
        elif (method, path) in PREDICTIONS_FOR_CLIENTS:
            expected = STATUSES | ({403} if "{" not in path else set())
            if path.startswith("/tei"):
                expected = expected - {500, 504} | {424}
            assert set(map(int, operation["responses"])) == expected, path


def test_the_timeout_is_documented_as_it_is_read(schema: dict[str, Any]) -> None:
    for path in ("/predict", "/predict/{task}", "/explain/{task}"):
        timeout, sticky = [
            each for each in schema["paths"][path]["post"]["parameters"] if each["in"] == "header"
        ]
        assert (sticky["name"], sticky["schema"]["type"]) == ("X-Sticky-Key", "string")
        assert timeout["name"] == "X-Request-Timeout-Ms"
        assert not timeout["required"]
        known = {name: timeout["schema"].get(name) for name in ("type", "minimum", "anyOf")}
        assert known == {"type": "integer", "minimum": 1, "anyOf": None}


def test_every_error_is_described_by_a_body_of_the_one_shape(schema: dict[str, Any]) -> None:
    codes = set()
    for _, path, operation in operations(schema):
        for status, response in operation["responses"].items():
            if status == "200":
                continue
            content = response["content"]["application/json"]
            name = ERRORS_OF_CLIENTS.get(path.split("/")[1], "ErrorBody")
            assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}, path
            assert response["description"]
            if name != "ErrorBody":
                model = schema["components"]["schemas"][name]
                assert set(model["required"]) <= set(content["example"]), path
                continue
            # FastAPI leaves what is null out of examples.
            fields = {"details", *content["example"]["error"]}
            assert fields == {"code", "message", "details", "request_id"}
            codes.add(content["example"]["error"]["code"])
            assert response["description"]
    assert {"malformed_json", "not_found", "overloaded", "deadline_exceeded"} <= codes
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_the_schema_without_a_started_app_has_no_examples(
    make_app: Callable[..., Any], schema: dict[str, Any]
) -> None:
    bare = make_app().openapi()
    assert list(bare["paths"]) == list(schema["paths"])
    body = bare["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert "examples" not in body


def test_the_page_needs_no_script_and_no_other_host(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(", page)
    assert set(re.findall(r"https?://[\w.]+", page)) == {"http://testserver"}
    assert re.findall(r'href="([^#"][^"]*)"', page) == ["/openapi.json"]
    assert client.get("/redoc").status_code == 404


def test_the_page_shows_every_route_and_object(client: TestClient, schema: dict[str, Any]) -> None:
    page = client.get("/docs").text
    for method, path, operation in operations(schema):
        assert f"<code>{method.upper()} {path}</code>" in page
        for text in (operation["summary"], *operation["responses"]):
            assert html.escape(text) in page
    for name in schema["components"]["schemas"]:
        assert f'id="{name}"' in page
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(schema["components"]["schemas"])


def test_every_command_of_the_page_works(client: TestClient) -> None:
    commands = re.findall(r"<pre>(.*?)</pre>", client.get("/docs").text, re.DOTALL)
    assert len(commands) > 10
    for command in map(html.unescape, commands):
        curl, quiet, url, *rest = shlex.split(command)
        assert (curl, quiet) == ("curl", "-s")
        method = "POST" if rest else "GET"
        headers = {"Content-Type": "application/json"} if rest else {}
        assert rest[:2] == (["-H", "Content-Type: application/json"] if rest else [])
        answer = client.request(method, url, headers=headers, content=rest[3] if rest else None)
        assert answer.status_code == 200, command


@pytest.mark.parametrize("prefix", ["", "/api/v1"], ids=["removed", "left"])
def test_a_proxy_may_serve_the_app_under_a_prefix(
    start: Callable[..., TestClient], prefix: str
) -> None:
    """The proxy may remove the prefix or leave it."""
    client = start(root_path="/api/v1/")
    for path in ("/tasks", "/tasks/", "/health/live", "/docs", "/"):
        assert client.get(prefix + path).status_code == 200, path
    assert client.post(f"{prefix}/predict/toy2", json={"inputs": "a film"}).status_code == 200
    assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/api/v1"}]
    assert client.get(f"{prefix}/").json()["docs"] == "/api/v1/docs"
    assert client.get("/api/v1").json()["docs"] == "/api/v1/docs", "without a slash at the end"
    page = client.get(f"{prefix}/docs").text
    assert 'href="/api/v1/openapi.json"' in page
    assert "curl -s http://testserver/api/v1/predict/toy2" in page


@pytest.mark.parametrize("prefix", ["api", "/a b", "http://x/api", "/a//b", "/?"])
def test_a_prefix_is_a_path(prefix: str) -> None:
    with pytest.raises(ValidationError, match="is not a path prefix; write it like /deltabert"):
        Settings(root_path=prefix)
