"""Lists the routers of all clients' protocols, and puts examples into their documentation.

Each example can be sent as it is. Tested by tests/http/test_openapi.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.http.openapi import example_row, parameter_of, request_body_of
from app.http.routes.clients.classify import classify
from app.http.routes.clients.hugging_face import hugging_face
from app.http.routes.clients.mlflow import invocations
from app.http.routes.clients.open_inference import inference, models
from app.http.routes.clients.repository import server_facts
from app.http.routes.clients.tei import tei_facts, tei_predictions
from deltas import Store, TaskSpec

CLIENT_ROUTERS = (
    hugging_face,
    tei_predictions,
    tei_facts,
    inference,
    models,
    server_facts,
    classify,
    invocations,
)

Schema = dict[str, Any]
Body = Callable[[TaskSpec], Schema]
_MAX_TASKS = 100  # in the document; there may be thousands


def add_client_examples(paths: Schema, store: Store) -> None:
    """Put examples into the operations; examples with the same key belong together."""
    records = [store.resolve(task) for task in store.tasks[:_MAX_TASKS]]
    values: dict[str, Schema] = {name: {} for name in ("task", "strategy", "model", "version")}
    for record in records:
        task, strategy = record.manifest.key
        given = {"task": task, "strategy": strategy, "model": task, "version": record.version}
        for name, value in given.items():
            values[name][task] = {"value": value}
    specs = [record.manifest.task for record in records]
    for path, methods in paths.items():
        if path.split("/")[1] not in ("hf", "tei", "v2", "classify", "invocations"):
            continue
        for operation in methods.values():
            for name, examples in values.items():
                if f"{{{name}}}" in path:
                    parameter_of(operation, name)["examples"] = examples
    named = parameter_of(paths["/invocations"]["post"], "task")
    named["examples"] = values["task"]
    for path, body in _BODIES.items():
        request_body_of(paths[path]["post"])["examples"] = {
            spec.name: {"summary": f"One row for {spec.name}", "value": body(spec)}
            for spec in specs
        }


def _texts(task: TaskSpec) -> dict[str, str]:
    row = example_row(task)
    return row if isinstance(row, dict) else {task.text_fields[0]: row}


def _for_hub(task: TaskSpec) -> Schema:
    return {"inputs": example_row(task), "parameters": {"top_k": 1}}


def _for_tei(task: TaskSpec) -> Schema:
    texts = list(_texts(task).values())
    return {"inputs": texts[0] if len(texts) == 1 else texts}


def _for_open_inference(task: TaskSpec) -> Schema:
    return {
        "inputs": [
            {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
            for name, text in _texts(task).items()
        ]
    }


def _for_vllm(task: TaskSpec) -> Schema:
    return {"model": task.name, "input": example_row(task)}


def _for_mlflow(task: TaskSpec) -> Schema:
    texts = _texts(task)
    return {"dataframe_split": {"columns": list(texts), "data": [list(texts.values())]}}


_BODIES: dict[str, Body] = {
    "/hf/{task}": _for_hub,
    "/hf/{task}/{strategy}": _for_hub,
    "/tei/{task}/predict": _for_tei,
    "/v2/models/{model}/infer": _for_open_inference,
    "/v2/models/{model}/versions/{version}/infer": _for_open_inference,
    "/classify": _for_vllm,
    "/invocations": _for_mlflow,
}
