"""Documents the API: error responses with real bodies, and examples for the served tasks.

Every example can be sent as it is. Its task, fields and strategies come from the manifests, its
sentences from here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from app.errors import (
    THE_SERVER,
    BodyTimeoutError,
    DeadlineExceededError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    Problem,
    TooLargeError,
    UnsupportedBodyError,
    WaitLimit,
    describe_error,
)
from app.http.context import Serving
from app.http.schemas import ErrorBody
from deltas import DeltaNotFoundError, Store, TaskSpec

_REQUEST_ID = "0123456789abcdef0123456789abcdef"
_ERRORS: dict[str, Exception] = {
    "The body is not valid JSON, or is nested too deeply.": RequestValidationError(
        [{"type": "json_invalid", "loc": ("body", 12), "ctx": {"error": "Expecting value"}}]
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


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of FastAPI for some statuses."""
    responses = {}
    for description, error in _ERRORS.items():
        status, body, _ = describe_error(error, _REQUEST_ID)
        if status in statuses:
            responses[status] = _response(status, description, body)
    return dict(sorted(responses.items()))


def _response(status: int, description: str, body: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "model": ErrorBody,
        "description": description,
        "content": {"application/json": {"example": body}},
    }
    if status == 429:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        }
    return response


_STATEMENTS = (
    "The bakery on our corner opens at seven every morning.",
    "You can buy fresh bread there before eight.",
)
_QUESTIONS = (
    "When does the bakery on our corner open?",
    "At what time can I buy fresh bread nearby?",
)
_MAX_TARGETS = 4

Schema = dict[str, Any]
Examples = dict[str, Schema]


def openapi_of(app: FastAPI) -> Schema:
    """Return the OpenAPI document of an app, with examples once the app serves."""
    is_new = app.openapi_schema is None
    schema = FastAPI.openapi(app)  # the class's method, which keeps its result
    if is_new:
        serving = app.state.serving
        if isinstance(serving, Serving) and serving.engine.store.records:
            add_examples(schema["paths"], serving.engine.store)
        else:
            app.openapi_schema = None  # the next document may have examples
    return schema


def add_examples(paths: Schema, store: Store) -> None:
    """Put examples into the operations; examples with the same key belong together."""
    defaults = [store.resolve(task) for task in store.tasks]
    specs = [record.manifest.task for record in defaults]
    names = {spec.name: {"value": spec.name} for spec in specs}

    predict = paths["/predict/{task}"]["post"]
    _parameter(predict, "task")["examples"] = names
    _body(predict)["examples"] = {
        spec.name: {"summary": f"One row for {spec.name}", "value": {"inputs": example_row(spec)}}
        for spec in specs
    }
    _body(paths["/predict"]["post"])["examples"] = _fan_outs(store, specs)

    details = paths["/deltas/{task}/{strategy}"]["get"]
    _parameter(details, "task")["examples"] = names
    _parameter(details, "strategy")["examples"] = {
        task: {"value": strategy} for task, strategy in (record.manifest.key for record in defaults)
    }
    _parameter(details, "version")["examples"] = {
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


def _parameter(operation: Schema, name: str) -> Schema:
    parameters: list[Schema] = operation["parameters"]
    return next(parameter for parameter in parameters if parameter["name"] == name)


def _body(operation: Schema) -> Schema:
    body: Schema = operation["requestBody"]["content"]["application/json"]
    return body
