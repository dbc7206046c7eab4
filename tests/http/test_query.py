"""Queries: parameters that a route does not know, or that are there twice, change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deltas import Backbone, delta_path, write_delta
from tests.factories import TOY_TASKS, make_delta
from tests.http.admin_key import ADMIN, KEYS

Start = Callable[..., TestClient]
CheckError = Callable[..., dict[str, Any]]
DELTA = "/deltas/toy2/head"
ROW = {"inputs": "a good film"}


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/predict/toy2?strategy=head", "'strategy' is not a parameter of the query, but a field"),
        ("/predict?top_k=1", "'top_k' is not a parameter of the query, but a field of the body"),
        ("/predict/toy2?inputs=x", "'inputs' is not a parameter of the query, but a field"),
        ("/explain/toy2?label=x", "'label' is not a parameter of the query, but a field"),
        ("/predict/toy2?x=1", "'x' is not a parameter of the query. Allowed: none"),
        ("/predict/toy2?x", "'x' is not a parameter of the query"),
        ("/v2/models/toy2/infer?strategy=head", "'strategy' is not a parameter of the query"),
    ],
)
def test_a_prediction_leaves_no_parameter_out(client: TestClient, path: str, problem: str) -> None:
    answer = client.post(path, json=ROW)
    assert answer.status_code == 422
    assert problem in answer.text


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (f"{DELTA}?versoin=x", "Did you mean 'version'? Allowed: version"),
        (f"{DELTA}?version=a&version=b", "'version' is twice in the query; give it once"),
        (f"{DELTA}/norms?split=x", "'split' is not a parameter of the query. Allowed: version"),
        (f"{DELTA}/predictions?q=x", "Allowed: version, split, offset, limit"),
        ("/tasks?limit=5&limit=6", "'limit' is twice in the query"),
        ("/tei/toy2/info?x=1", "'x' is not a parameter of the query"),
        ("/v2/models/toy2?x=1", "'x' is not a parameter of the query"),
    ],
)
def test_a_look_leaves_no_parameter_out(client: TestClient, path: str, problem: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert problem in answer.text


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready", "/metrics?name[]=x"])
def test_probes_and_scrapers_may_add_parameters(client: TestClient, path: str) -> None:
    assert client.get(path + ("&" if "?" in path else "?") + "cache=1").status_code == 200


@pytest.mark.parametrize("query", ["versoin=", "version=x&version=y", "all=true"])
def test_a_mistyped_query_removes_no_delta(
    start: Start,
    folder: Path,
    tiny_backbone: Backbone,
    check_error: CheckError,
    query: str,
) -> None:
    path = delta_path(folder, tiny_backbone.ref.id, "toy2", "head")
    write_delta(make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", 1), path)
    server = start(deltas=(folder,), keys=KEYS)
    for method, url in (("DELETE", DELTA), ("PUT", DELTA), ("POST", f"{DELTA}/rollback")):
        answer = server.request(method, f"{url}?{query}", headers=ADMIN, content=b"")
        check_error(answer, 422, "invalid_input")
    assert path.exists()
    assert server.post("/predict/toy2", json=ROW).status_code == 200
