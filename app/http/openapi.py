"""Documents the API: error responses with real bodies, examples for the served tasks, and `/docs`.

Every example can be sent as it is. Its task, fields and strategies come from the manifests, its
sentences from here. The page `/docs` is plain HTML without scripts and other hosts, so that it
works without the internet and behind a path prefix. Tested by tests/http/test_openapi.py.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from html import escape
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.routing import Match
from starlette.types import Scope

from app.errors import (
    THE_SERVER,
    BodyTimeoutError,
    ConflictError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    Problem,
    TooLargeError,
    UnauthorizedError,
    UnsupportedBodyError,
    WaitLimit,
    describe_error,
)
from app.http.context import Serving
from app.http.routes.clients.error_forms import ErrorForm, error_form_of
from app.http.schemas import ErrorBody
from app.keys.middleware import API_KEY_HEADER, OPEN_PATHS
from deltas import DeltaNotFoundError, Store, TaskSpec
from deltas.store.predictions import predictions_path

_REQUEST_ID = "0123456789abcdef0123456789abcdef"
_METHODS = ("GET", "POST", "PUT", "DELETE")
_ERRORS: dict[str, Exception] = {
    "The body is not valid JSON, or is nested too deeply.": RequestValidationError(
        [{"type": "json_invalid", "loc": ("body", 12), "ctx": {"error": "Expecting value"}}]
    ),
    "The request lacks the key of an admin, or has another one.": UnauthorizedError(
        "a change needs the header Authorization: Bearer KEY"
    ),
    "Changes over HTTP are off.": ForbiddenError("changes over HTTP are off"),
    "The change does not fit the present state.": ConflictError(
        "version a55a61fcaf8020f8 is the default of sst2/bitfit; roll back first"
    ),
    "The body takes too long to arrive.": BodyTimeoutError(10.0),
    "No such task, strategy or version; the answer suggests near matches.": DeltaNotFoundError(
        "task", "sentimint", ["sentiment", "spam"]
    ),
    "More bytes, rows or characters than the server takes.": TooLargeError(
        "rows in one request", 5000, 1024, "DELTABERT_MAX_ROWS_PER_REQUEST"
    ),
    "The body is not JSON, or is compressed.": UnsupportedBodyError(
        "Content-Type is 'text/plain'; send the header Content-Type: application/json"
    ),
    "The input does not fit route or task; the answer names every problem.": InvalidInputError(
        [Problem(row=2, field="premise", problem="is missing")]
    ),
    "The server is overloaded; try again after the seconds in Retry-After.": OverloadedError(
        4096, 90000, 9, 8.4, WaitLimit(2.0, THE_SERVER)
    ),
    "The server failed; its log has the cause.": Exception(),
    "The server is starting, stopping or broken.": NotReadyError("the server is shutting down"),
    "Not answered in time.": DeadlineExceededError(30.0),
}


def documented(*statuses: int, form: ErrorForm | None = None) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of FastAPI for some statuses.

    Args:
        *statuses: our own statuses.
        form: form of the errors for clients of another protocol; None for our own.
    """
    responses: dict[int, dict[str, Any]] = {}
    for description, error in _ERRORS.items():
        status, body, _ = describe_error(error, _REQUEST_ID)
        if status in statuses:
            if form is not None:
                status, body = form.write(status, body["error"])
            responses.setdefault(status, _response(status, description, body, form))
    return dict(sorted(responses.items()))


def _response(
    status: int, description: str, body: dict[str, Any], form: ErrorForm | None
) -> dict[str, Any]:
    response: dict[str, Any] = {
        "model": form.model if form else ErrorBody,
        "description": description,
        "content": {"application/json": {"example": body}},
    }
    if status == 429:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        }
    return response


_ANY_TEXT: dict[str, Any] = {"inputs": "A text."}
_STATEMENTS = (
    "The bakery on our corner opens at seven every morning.",
    "You can buy fresh bread there before eight.",
)
_QUESTIONS = (
    "When does the bakery on our corner open?",
    "At what time can I buy fresh bread nearby?",
)
_MAX_TARGETS = 4
_MAX_EXAMPLES = 12  # of an operation on the page; there may be thousands of tasks

Schema = dict[str, Any]
Examples = dict[str, Schema]


def openapi_of(app: FastAPI, add_more: Callable[[Schema, Store], None]) -> Schema:
    """Return the OpenAPI document of an app, with examples once the app serves.

    Args:
        app: app with its routes.
        add_more: puts the examples of the clients' routes into the paths.
    """
    is_new = app.openapi_schema is None
    schema = FastAPI.openapi(app)  # the class's method, which keeps its result
    if is_new and app.state.keyring is not None:
        add_security(schema)  # and no examples, which would name the tasks of all keys
    elif is_new:
        serving = app.state.serving
        if isinstance(serving, Serving) and serving.engine.store.records:
            add_examples(schema["paths"], serving.engine.store)
            add_more(schema["paths"], serving.engine.store)
        else:
            app.openapi_schema = None  # the next document may have examples
    return schema


def add_security(document: Schema) -> None:
    """Say which operations need a key, how it is sent, and which errors that adds."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER},
    }
    errors = {
        "401": ("There is no key, or an unknown one.", UnauthorizedError("the key is unknown")),
        "403": (
            "The key is not for this task or change.",
            ForbiddenError("the key 'team-a' may not use the task 'sst2'"),
        ),
    }
    paths = document["paths"]
    one, several = _ANY_TEXT, _ANY_TEXT | {"targets": [{"task": "TASK"}]}
    bodies = {"/predict/{task}": one, "/explain/{task}": one, "/predict": several}
    for path, body in bodies.items():
        request_body_of(paths[path]["post"])["examples"] = {"one text": {"value": body}}
    for path, methods in paths.items():
        form = error_form_of(path)
        for operation in methods.values() if path not in OPEN_PATHS else ():
            operation["security"] = [{"bearer": []}, {"header": []}]
            for status, (description, error) in errors.items():
                our_status, example, _ = describe_error(error, _REQUEST_ID)
                if form is not None:
                    example = form.write(our_status, example["error"])[1]
                name = (form.model if form else ErrorBody).__name__
                schema = {"$ref": f"#/components/schemas/{name}"}
                operation["responses"][status] = {
                    "description": description,
                    "content": {"application/json": {"schema": schema, "example": example}},
                }


def add_examples(paths: Schema, store: Store) -> None:
    """Put examples into the operations; examples with the same key belong together."""
    defaults = [store.resolve(task) for task in store.tasks]
    specs = [record.manifest.task for record in defaults]
    names = {spec.name: {"value": spec.name} for spec in specs}

    for path in ("/predict/{task}", "/explain/{task}"):
        operation = paths[path]["post"]
        parameter_of(operation, "task")["examples"] = names
        request_body_of(operation)["examples"] = {
            spec.name: {
                "summary": f"One row for {spec.name}",
                "value": {"inputs": example_row(spec)},
            }
            for spec in specs
        }
    request_body_of(paths["/predict"]["post"])["examples"] = _fan_outs(store, specs)

    judged = [one for one in defaults[:_MAX_EXAMPLES] if predictions_path(one.path).is_file()]
    of_a_delta = "/deltas/{task}/{strategy}"
    for path, found in (
        (of_a_delta, defaults),
        (f"{of_a_delta}/norms", defaults),
        (f"{of_a_delta}/predictions", judged),
    ):
        keys = [record.manifest.key for record in found]
        operation = paths[path]["get"]
        parameter_of(operation, "task")["examples"] = {task: {"value": task} for task, _ in keys}
        parameter_of(operation, "strategy")["examples"] = {
            task: {"value": strategy} for task, strategy in keys
        }
    parameter_of(paths[of_a_delta]["get"], "version")["examples"] = {
        record.manifest.task.name: {"value": record.version} for record in defaults
    }


def example_row(spec: TaskSpec) -> str | dict[str, str]:
    """Return a row that the task takes: a string for one text, an object for two."""
    texts = [
        (_QUESTIONS if "question" in field.lower() else _STATEMENTS)[position]
        for position, field in enumerate(spec.text_fields)
    ]
    return texts[0] if len(texts) == 1 else dict(zip(spec.text_fields, texts, strict=True))


def _fan_outs(store: Store, specs: list[TaskSpec]) -> Examples:
    """Return examples with several tasks, and one with several strategies of a task."""
    examples: Examples = {}
    both = dict(zip(("text", "text_pair"), _STATEMENTS, strict=True))
    for num_texts, name, row in ((1, "one text", _STATEMENTS[0]), (2, "two texts", both)):
        tasks = [spec.name for spec in specs if len(spec.text_fields) == num_texts][:_MAX_TARGETS]
        if tasks:
            examples[name] = {
                "summary": f"{name.capitalize()}, several tasks",
                "value": {"inputs": row, "targets": [{"task": task} for task in tasks]},
            }
    widest = max(specs, key=lambda spec: len(store.strategies(spec.name)))
    strategies = store.strategies(widest.name)[:_MAX_TARGETS]
    examples["strategies"] = {
        "summary": "One task, several strategies",
        "value": {
            "inputs": [example_row(widest)],
            "targets": [{"task": widest.name, "strategy": strategy} for strategy in strategies],
        },
    }
    return examples


def parameter_of(operation: Schema, name: str) -> Schema:
    """Return a parameter of an operation."""
    parameters: list[Schema] = operation["parameters"]
    return next(parameter for parameter in parameters if parameter["name"] == name)


def request_body_of(operation: Schema) -> Schema:
    """Return the JSON body of an operation."""
    body: Schema = operation["requestBody"]["content"]["application/json"]
    return body


_CHANGES = {"changes"}  # tags of operations that always need a key
_OPTIONS = {"PUT": "-T FILE ", "DELETE": "-X DELETE ", "POST": "-X POST "}  # of curl
_STYLE = """\
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1e21; background: #fff; }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; font-size: 1.2rem; }
table { border-collapse: collapse; } td, th { text-align: left; vertical-align: top;
       padding: .2rem 1rem .2rem 0; } pre { overflow-x: auto; background: #f4f4f4; padding: .8rem; }
"""


def docs_page(document: Schema, base_url: str) -> str:
    """Return the page.

    Args:
        document: OpenAPI document of the server.
        base_url: address of the server for the commands, without a slash at its end.
    """
    info = document["info"]
    openapi = f"{urlsplit(base_url).path}/openapi.json"
    title = escape(f"{info['title']} {info['version']}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1>{_text(info['description'])}",
        f'<p>For programs: <a href="{escape(openapi)}">openapi.json</a></p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method.upper(), path, operation, base_url)
    parts.append("<h2>Objects</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts += _object(name, schema)
    return "\n".join([*parts, "</body></html>"])


def _operation(method: str, path: str, operation: Schema, base_url: str) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2>"
    yield f"<p><b>{escape(operation['summary'])}.</b></p>{_text(operation['description'])}"
    parameters = operation.get("parameters", [])
    if parameters:
        rows = [
            (each["name"], f"{each['in']}, {_type(each['schema'])}", each.get("description", ""))
            for each in parameters
        ]
        yield _table(("parameter", "type", ""), rows)
    for name, command in _commands(method, path, operation, base_url):
        yield f"<details><summary>Example: {escape(name)}</summary><pre>{escape(command)}</pre>"
        yield "</details>"
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "schema" in body:
        yield f"<p>Body: {_type(body['schema'])}</p>"
    rows = []
    for status, response in operation["responses"].items():
        content = response.get("content", {}).get("application/json", {})
        error = content.get("example", {}).get("error")
        code = error["code"] if isinstance(error, dict) and "request_id" in error else None
        shown = f"<code>{escape(code)}</code>" if code else _type(content.get("schema", {}))
        rows.append((status, shown, response["description"]))
    yield _table(("status", "answer", ""), rows)


def _commands(
    method: str, path: str, operation: Schema, base_url: str
) -> Iterator[tuple[str, str]]:
    """Yield name and command of each example; equal names of path and body belong together."""
    content = operation.get("requestBody", {}).get("content", {})
    bodies = content.get("application/json", {}).get("examples", {})
    parameters = operation.get("parameters", [])
    first: Examples = next(
        (each.get("examples", {}) for each in parameters if each["in"] == "path"), {}
    )
    for name in (list(bodies) or list(first) or ["curl"])[:_MAX_EXAMPLES]:
        filled = _filled(path, parameters, name)
        option = "" if method == "POST" and content else _OPTIONS.get(method, "")
        command = f"curl -s {option}{shlex.quote(base_url + filled)}"
        if "security" in operation or _CHANGES & set(operation["tags"]):
            command += ' -H "Authorization: Bearer $KEY"'
        if method == "POST" and content:
            value = json.dumps(bodies.get(name, {}).get("value", {}), ensure_ascii=False)
            command += f" -H 'Content-Type: application/json' -d {shlex.quote(value)}"
        yield name, command


def _filled(path: str, parameters: list[Schema], name: str) -> str:
    """Return path and query with the values that the parameters have in one example."""
    query = []
    for parameter in parameters:
        shown = f"{{{parameter['name']}}}"
        value = parameter.get("examples", {}).get(name, {}).get("value", shown)
        if parameter["in"] == "path":
            path = path.replace(shown, value)
        elif parameter["in"] == "query" and value != shown:
            query.append(f"{parameter['name']}={quote(value)}")
    return path + ("?" + "&".join(query) if query else "")


def _object(name: str, schema: Schema) -> Iterator[str]:
    yield f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(schema.get("description", ""))}'
    required = schema.get("required", [])
    rows = [
        (
            field,
            _type(each) + ("" if field in required else ", optional"),
            each.get("description", ""),
        )
        for field, each in schema.get("properties", {}).items()
    ]
    yield _table(("field", "type", ""), rows)


def _type(schema: Schema) -> str:
    """Describe a type in HTML, with a link to each object."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(map(_type, schema[key]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    if schema.get("type") == "array" and "items" in schema:
        return f"list of ({_type(schema['items'])})"
    return escape(str(schema.get("type", "any")))


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    """Return a table; the second cell of each row is HTML, the others are text."""
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    lines = [
        f"<tr><td><code>{escape(name)}</code></td><td>{html}</td><td>{escape(text)}</td></tr>"
        for name, html, text in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _text(text: str) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in text.strip().split("\n\n") if part)


def methods_at(app: FastAPI, scope: Scope) -> tuple[str, ...]:
    """Return the methods that a path takes; several routes may have it, each with one method."""
    return tuple(
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] == Match.FULL for route in app.routes)
    )
